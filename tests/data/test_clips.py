import numpy as np
import pytest
import torch
from tiny_recordings import TinyRecording, tiny_arrays, tiny_trial

from data.clips import ClipBatch
from data.loading import cut_clips
from data.recording import Tier


@pytest.fixture(scope="module")
def trials():
    return [tiny_trial(3, 10), tiny_trial(5, 8), tiny_trial(6, 9, Tier.LIVE_MAIN, has_responses=False)]


@pytest.fixture(params=[np.float16, np.float32])
def recording(request, trials):
    return TinyRecording("mouse", trials, [tiny_arrays(trial, 4, dtype=request.param) for trial in trials])


def test_a_clip_holds_the_frames_it_names(recording, trials):
    batch = cut_clips(recording, [(trials[0], 3), (trials[1], 0)], num_frames=3, frame_step=2)
    for row, (index, start) in enumerate([(3, 3), (5, 0)]):
        arrays = recording.arrays[index]
        for column, frame in enumerate((start, start + 2, start + 4)):
            assert batch.video[row, 0, column].tolist() == arrays.video[frame].tolist()
            assert batch.behavior[row, :, column].tolist() == arrays.behavior[frame].tolist()
            assert batch.pupil[row, :, column].tolist() == arrays.pupil[frame].tolist()
            assert batch.responses[row, :, column].tolist() == arrays.responses[frame].tolist()
    assert batch.trial.tolist() == [3, 5]
    assert batch.frames.tolist() == [[3, 5, 7], [0, 2, 4]]
    assert (len(batch), batch.num_frames) == (2, 3)


def test_clips_keep_the_stored_types_and_own_their_memory(recording, trials):
    first, second = (cut_clips(recording, [(trials[0], 0)], num_frames=4) for _ in range(2))
    first.responses.zero_()
    first.video.zero_()
    assert second.video.dtype == torch.uint8
    assert str(second.responses.dtype).endswith(recording.frames(trials[0], 0, 1).responses.dtype.name)
    np.testing.assert_array_equal(second.responses[0].T.numpy(), recording.frames(trials[0], 0, 4).responses)
    assert second.video.any()


def test_withheld_responses_are_none_and_do_not_mix_with_known_ones(recording, trials):
    assert cut_clips(recording, [(trials[2], 0)], num_frames=9).responses is None
    with pytest.raises(ValueError, match="clips of mouse mix trials with and without responses"):
        cut_clips(recording, [(trials[0], 0), (trials[2], 0)], num_frames=5)


def test_selected_clips_share_memory_with_the_batch(recording, trials):
    batch = cut_clips(recording, [(trials[0], 0), (trials[1], 2), (trials[0], 4)], num_frames=4)
    part = batch.select(slice(1, 3))
    assert part.trial.tolist() == [5, 3]
    assert part.start.tolist() == [2, 4]
    for name in ("video", "behavior", "pupil", "responses"):
        assert getattr(part, name).data_ptr() == getattr(batch, name)[1:].data_ptr()
        assert torch.equal(getattr(part, name), getattr(batch, name)[1:])


def test_a_moved_batch_keeps_session_step_and_missing_responses(recording, trials):
    batch = cut_clips(recording, [(trials[2], 1)], num_frames=3, frame_step=3)
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, ClipBatch)
    assert (moved.session, moved.frame_step, moved.responses) == ("mouse", 3, None)
    tensors = (moved.video, moved.behavior, moved.pupil, moved.trial, moved.start)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
