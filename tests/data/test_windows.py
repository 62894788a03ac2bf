import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.clips import ClipBatch
from data.windows import (
    DWISENEURO_WINDOWS,
    V1FM_WINDOWS,
    Stitcher,
    Window,
    WindowPlan,
    cut_windows,
    window_starts,
)


@st.composite
def plans(draw):
    length = draw(st.integers(1, 9))
    lead = draw(st.integers(0, length - 1))
    return WindowPlan(
        length=length,
        lead=lead,
        hop=draw(st.integers(1, length - lead)),
        frame_step=draw(st.integers(1, 3)),
        start=draw(st.integers(0, 5)),
        overlap=draw(st.sampled_from(["mean", "first"])),
    )


def whole_trial(num_frames, num_neurons=3):
    """A trial whose every value tells its frame."""
    frame = torch.arange(num_frames, dtype=torch.float32)
    return ClipBatch(
        session="mouse",
        video=frame[None, None, :, None, None].expand(1, 1, num_frames, 2, 3),
        behavior=frame.expand(1, 2, num_frames),
        pupil=frame.expand(1, 2, num_frames),
        responses=frame.expand(1, num_neurons, num_frames),
        trial=torch.tensor([4]),
        start=torch.tensor([0]),
    )


def predict_frame_numbers(trial, plan, warmup):
    """Stitch a model that predicts the frame's own number, but nothing for its warm-up."""
    num_frames = trial.num_frames
    stitcher = Stitcher(3, num_frames)
    windows = plan.windows(num_frames)
    clips = cut_windows(trial, windows)
    stitcher.add(windows, clips.responses[..., warmup:])
    return stitcher.result()


@settings(deadline=None)
@given(plan=plans(), extra=st.integers(0, 30), data=st.data())
def test_stitching_a_model_that_knows_its_frame_gives_the_frames_back(plan, extra, data):
    num_frames = plan.start + 1 + (plan.length - 1) * plan.frame_step + extra
    warmup = data.draw(st.integers(0, plan.lead))
    predicted, covered = predict_frame_numbers(whole_trial(num_frames), plan, warmup)
    torch.testing.assert_close(predicted[:, covered], torch.arange(num_frames)[covered].float().expand(3, -1))
    assert predicted[:, ~covered].isnan().all()


@settings(deadline=None)
@given(plan=plans(), extra=st.integers(0, 30))
def test_every_frame_after_the_lead_is_covered(plan, extra):
    num_frames = plan.start + plan.length * plan.frame_step + extra
    covered = set()
    for window in plan.windows(num_frames):
        assert window.frames[0] >= plan.start
        assert window.frames[-1] < num_frames
        covered.update(window.kept_frames)
    assert covered == set(range(plan.start + plan.lead * plan.frame_step, num_frames))


@settings(deadline=None)
@given(plan=plans(), extra=st.integers(0, 30))
def test_with_overlap_first_every_frame_is_used_once(plan, extra):
    plan = WindowPlan(
        length=plan.length, lead=plan.lead, hop=plan.hop, frame_step=plan.frame_step, overlap="first"
    )
    windows = plan.windows(plan.length * plan.frame_step + extra)
    used = [frame for window in windows for frame in window.kept_frames]
    assert len(used) == len(set(used))


@pytest.mark.parametrize(
    ("num_frames", "starts", "tail"),
    [(299, [*range(35, 261, 15), 269], 9), (239, [*range(35, 201, 15), 209], 9)],
)
def test_v1fm_windows_are_those_of_the_published_inference(num_frames, starts, tail):
    windows = V1FM_WINDOWS.windows(num_frames)
    assert [window.start for window in windows] == starts
    assert [len(window.kept) for window in windows] == [15] * (len(starts) - 1) + [tail]
    kept = [frame for window in windows for frame in window.kept_frames]
    assert kept == list(range(50, num_frames))


def test_dwiseneuro_windows_end_on_every_frame_from_30_on():
    windows = DWISENEURO_WINDOWS.windows(300)
    assert len(windows) == 270
    assert [window.frames[-1] for window in windows] == list(range(30, 300))
    assert windows[7].frames == range(7, 38, 2)


def test_dwiseneuro_stitching_divides_by_the_number_of_windows_on_each_frame():
    rng = np.random.default_rng(3)
    windows = DWISENEURO_WINDOWS.windows(70)
    rates = rng.random((len(windows), 2, 16)).astype(np.float32)
    total, count = np.zeros((2, 70)), np.zeros(70)
    for end, window_rates in zip(range(30, 70), rates, strict=True):
        for column, frame in enumerate(range(end - 30, end + 1, 2)):
            total[:, frame] += window_rates[:, column]
            count[frame] += 1
    stitcher = Stitcher(2, 70)
    for first in range(0, len(windows), 7):
        batch = slice(first, first + 7)
        stitcher.add(windows[batch], torch.from_numpy(rates[batch]))
    predicted, covered = stitcher.result()
    assert covered.all()
    assert count.max() == 16
    np.testing.assert_allclose(predicted.numpy(), total / count, rtol=1e-6)


def test_a_whole_trial_is_one_window_without_its_warm_up():
    (window,) = WindowPlan(lead=18).windows(300)
    assert window == Window(start=0, length=300, frame_step=1, kept=range(18, 300))


def test_a_frame_step_of_two_without_overlap_covers_both_halves_of_the_frames():
    windows = WindowPlan(length=16, hop=16, frame_step=2).windows(64)
    assert [window.start for window in windows] == [0, 1, 32, 33]


def test_cut_windows_holds_the_frames_of_each_window():
    windows = WindowPlan(length=4, frame_step=2, hop=2).windows(12)
    clips = cut_windows(whole_trial(12), windows)
    expected = torch.tensor([list(window.frames) for window in windows])
    torch.testing.assert_close(clips.frames, expected)
    torch.testing.assert_close(clips.video[:, 0, :, 1, 2], expected.float())
    torch.testing.assert_close(clips.behavior[:, 1], expected.float())
    torch.testing.assert_close(clips.responses[:, 2], expected.float())
    assert clips.trial.tolist() == [4] * len(windows)
    assert clips.frame_step == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 5, "lead": 3, "hop": 3}, "hop is 3 for windows of 5 frames"),
        ({"length": 5, "lead": 5}, "frames would be skipped"),
        ({"lead": -1}, "lead is -1"),
        ({"frame_step": 0}, "frame_step is 0"),
    ],
)
def test_a_plan_that_skips_frames_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        WindowPlan(**fields)


def test_a_trial_shorter_than_one_window_is_refused_with_the_frames_it_needs():
    with pytest.raises(ValueError, match="num_frames is 30, but must be at least 31"):
        DWISENEURO_WINDOWS.windows(30)
    with pytest.raises(ValueError, match="num_frames is 18, but must be at least 19"):
        WindowPlan(lead=18).windows(18)


def test_a_model_that_warms_up_longer_than_the_plan_allows_is_refused():
    windows = WindowPlan(length=6, lead=2, hop=4).windows(6)
    with pytest.raises(ValueError, match="raise the plan's lead"):
        Stitcher(3, 6).add(windows, torch.zeros(1, 3, 3))


def test_cut_windows_refuses_windows_beyond_the_trial_and_partial_trials():
    windows = WindowPlan(length=6).windows(8)
    with pytest.raises(ValueError, match="a window ends on frame 7, but the trial has 6 frames"):
        cut_windows(whole_trial(6), windows)
    with pytest.raises(ValueError, match="must be one whole trial"):
        cut_windows(cut_windows(whole_trial(8), windows), windows)


def test_window_starts_refuses_windows_longer_than_the_trial():
    with pytest.raises(ValueError, match="window is 5"):
        window_starts(4, window=5, hop=1)
