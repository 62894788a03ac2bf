import pickle
import threading
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_recordings import TinyRecording, tiny_arrays, tiny_trial

from data.folds import select_trials
from data.loading import ClipLoader, iterate_trials, run_ahead
from data.recording import Tier
from data.sampling import LoaderConfig, count_steps, draw_epoch

SESSIONS = {"alpha": (7, 3), "beta": (4, 5), "gamma": (1, 2)}


def make_recordings(dtype):
    """Make sessions with 7, 4 and 1 train trials of 9 to 12 frames, and a withheld test trial each."""
    recordings = []
    for seed, (session, (num_trials, num_neurons)) in enumerate(SESSIONS.items()):
        trials = [tiny_trial(2 * row, 9 + row % 4) for row in range(num_trials)]
        trials.append(tiny_trial(99, 11, Tier.LIVE_MAIN, has_responses=False))
        arrays = [tiny_arrays(trial, num_neurons, seed=seed, dtype=dtype) for trial in trials]
        recordings.append(TinyRecording(session, trials, arrays))
    return recordings


@pytest.fixture(scope="module")
def in_memory():
    return make_recordings(np.float16)


@pytest.fixture(scope="module")
def trials(in_memory):
    return select_trials(in_memory, [Tier.TRAIN])


def make_loader(in_memory, trials, *, order="round", seed=5, **settings):
    config = LoaderConfig(clip_frames=3, frame_step=2, batch_size=4, order=order)
    return ClipLoader(in_memory, trials, config, seed=seed, **{"threads": 0} | settings)


def contents(steps):
    """All that is in the steps, in lists that compare."""
    return [
        [
            (batch.session, batch.trial.tolist(), batch.start.tolist(), batch.responses.tolist())
            for batch in step
        ]
        for step in steps
    ]


def count_clips(clips_of_session):
    return Counter((session, clip) for session, clips in clips_of_session.items() for clip in clips)


def clips_of(step):
    return Counter(
        (batch.session, trial, start)
        for batch in step
        for trial, start in zip(batch.trial.tolist(), batch.start.tolist(), strict=True)
    )


@st.composite
def epochs(draw):
    config = LoaderConfig(
        clip_frames=draw(st.integers(1, 4)),
        frame_step=draw(st.integers(1, 2)),
        batch_size=draw(st.integers(1, 9)),
        order=draw(st.sampled_from(["round", "cycle", "mixed"])),
        clips_per_session=draw(st.none() | st.integers(1, 30)),
    )
    num_starts = draw(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=8), min_size=1, max_size=4))
    return [np.array(starts) for starts in num_starts], config


@settings(deadline=None)
@given(epoch=epochs(), seed=st.integers(0, 2**40))
def test_a_session_shows_its_trials_equally_often_and_valid_starts_only(epoch, seed):
    num_starts, config = epoch
    plan = draw_epoch(num_starts, config, seed=seed, epoch=3)
    drawn = [plan.session == position for position in range(len(num_starts))]
    wanted = config.clips_per_session or max(len(starts) for starts in num_starts)
    for starts, mine in zip(num_starts, drawn, strict=True):
        assert wanted <= mine.sum() < wanted + config.batch_size
        times = np.bincount(plan.trial[mine], minlength=len(starts))
        assert len(times) == len(starts)
        assert times.max() - times.min() <= 1
        assert (plan.start[mine] >= 0).all()
        assert (plan.start[mine] < starts[plan.trial[mine]]).all()


@settings(deadline=None)
@given(epoch=epochs(), num_ranks=st.integers(1, 5))
def test_ranks_share_each_step_without_overlap_or_gap(epoch, num_ranks):
    num_starts, config = epoch
    plan = draw_epoch(num_starts, config, seed=1, epoch=0)
    assert len(plan.session) == count_steps([len(starts) for starts in num_starts], config)
    for step in range(len(plan.session)):
        whole = count_clips(plan.step(step))
        shares = [count_clips(plan.step(step, rank=rank, num_ranks=num_ranks)) for rank in range(num_ranks)]
        assert sum(shares, Counter()) == whole
        sizes = [share.total() for share in shares]
        assert max(sizes) - min(sizes) <= plan.session.shape[1]


def test_starts_are_uniform_over_all_valid_starts():
    config = LoaderConfig(batch_size=1, clips_per_session=6000, clip_frames=5)
    starts = draw_epoch([np.array([6])], config, seed=7, epoch=0).start
    counts = np.bincount(starts.ravel())
    assert len(counts) == 6
    # Five standard deviations of a binomial count.
    assert abs(counts - 1000).max() < 5 * np.sqrt(6000 * (1 / 6) * (5 / 6))


def test_a_round_is_one_batch_of_every_session(in_memory, trials):
    loader = make_loader(in_memory, trials, order="round")
    steps = list(loader.epoch(0))
    assert len(steps) == loader.num_steps == 2
    assert [[(batch.session, len(batch)) for batch in step] for step in steps] == [
        [("alpha", 4), ("beta", 4), ("gamma", 4)]
    ] * 2


def test_a_cycle_takes_sessions_in_turns(in_memory, trials):
    loader = make_loader(in_memory, trials, order="cycle")
    steps = list(loader.epoch(0))
    assert len(steps) == loader.num_steps == 6
    assert [[batch.session for batch in step] for step in steps] == [["alpha"], ["beta"], ["gamma"]] * 2


def test_mixed_steps_have_one_size_and_group_clips_by_session(in_memory, trials):
    loader = make_loader(in_memory, trials, order="mixed")
    steps = list(loader.epoch(0))
    assert len(steps) == loader.num_steps == 6
    for step in steps:
        assert sum(len(batch) for batch in step) == 4
        assert len({batch.session for batch in step}) == len(step)
    assert len({tuple(len(batch) for batch in step) for step in steps}) > 1


@pytest.mark.parametrize("order", ["round", "cycle", "mixed"])
def test_the_number_of_threads_does_not_change_the_steps(in_memory, trials, order):
    expected = contents(make_loader(in_memory, trials, order=order).epoch(2))
    for threads in (1, 3):
        loader = make_loader(in_memory, trials, order=order, threads=threads)
        assert contents(loader.epoch(2)) == expected


@pytest.mark.parametrize("order", ["round", "cycle", "mixed"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_all_ranks_together_see_the_clips_of_one_process(in_memory, trials, order, num_ranks):
    expected = [clips_of(step) for step in make_loader(in_memory, trials, order=order).epoch(1)]
    ranks = [
        make_loader(in_memory, trials, order=order, rank=rank, num_ranks=num_ranks).epoch(1)
        for rank in range(num_ranks)
    ]
    together = [sum((clips_of(part) for part in parts), Counter()) for parts in zip(*ranks, strict=True)]
    assert together == expected


@pytest.mark.parametrize("order", ["round", "cycle", "mixed"])
def test_an_epoch_goes_on_from_any_step(in_memory, trials, order):
    loader = make_loader(in_memory, trials, order=order, threads=2)
    whole = contents(loader.epoch(4))
    for start_step in range(loader.num_steps + 1):
        assert contents(loader.epoch(4, start_step=start_step)) == whole[start_step:]


def test_epochs_and_seeds_differ(in_memory, trials):
    loader, other = (make_loader(in_memory, trials, seed=seed) for seed in (5, 6))
    first, second, third = contents(loader.epoch(0)), contents(loader.epoch(1)), contents(other.epoch(0))
    assert first != second
    assert first != third


def test_frames_beyond_the_limit_are_never_drawn(in_memory, trials):
    config = LoaderConfig(clip_frames=3, batch_size=4, max_trial_frames=5, clips_per_session=40)
    loader = ClipLoader(in_memory, trials, config, seed=0, threads=0)
    ends = {int(end) for step in loader.epoch(0) for batch in step for end in batch.frames[:, -1]}
    assert ends == {2, 3, 4}


def test_every_trial_of_the_longest_session_is_seen_in_an_epoch(in_memory, trials):
    seen = defaultdict(set)
    for step in make_loader(in_memory, trials).epoch(0):
        for batch in step:
            seen[batch.session].update(batch.trial.tolist())
    assert {session: len(indices) for session, indices in seen.items()} == {"alpha": 7, "beta": 4, "gamma": 1}


def test_whole_trials_come_in_order_with_and_without_responses(in_memory):
    trials = select_trials(in_memory, [Tier.TRAIN, Tier.LIVE_MAIN], labelled=False)
    batches = list(iterate_trials(in_memory, trials, threads=2))
    expected = [(session, trial) for session, of_session in trials.items() for trial in of_session]
    assert [(b.session, b.trial.tolist(), b.num_frames) for b in batches] == [
        (session, [trial.index], trial.num_frames) for session, trial in expected
    ]
    assert [b.responses is None for b in batches] == [not trial.has_responses for _, trial in expected]


def test_whole_trials_can_be_cut_and_sessions_left_out(in_memory):
    trials = {"beta": select_trials(in_memory, [Tier.TRAIN])["beta"]}
    batches = list(iterate_trials(in_memory, trials, max_trial_frames=10, threads=0))
    assert [batch.num_frames for batch in batches] == [9, 10, 10, 10]


def read_ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_an_exception_in_a_thread_is_raised_where_its_step_is_due():
    def job(number):
        if number == 2:
            raise OSError("disk is gone")
        return number

    results = run_ahead([lambda n=n: job(n) for n in range(5)], threads=2, jobs_ahead=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="disk is gone"):
        next(results)
    assert not read_ahead_threads()


def test_closing_early_leaves_no_thread(in_memory, trials):
    loader = make_loader(in_memory, trials, threads=3)
    with closing(loader.epoch(0)) as steps:
        next(steps)
        assert read_ahead_threads()
    assert not read_ahead_threads()


def test_threads_read_ahead_no_further_than_asked():
    done = []
    results = run_ahead([lambda n=n: done.append(n) for n in range(50)], threads=2, jobs_ahead=4)
    next(results)
    deadline = time.monotonic() + 10
    while len(done) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(done) == [0, 1, 2, 3, 4]
    results.close()


def test_batches_are_equal_from_float16_and_float32_stores(in_memory, trials):
    steps = [make_loader(each, trials).epoch(0) for each in (in_memory, make_recordings(np.float32))]
    for half, single in zip(*steps, strict=True):
        for first, second in zip(half, single, strict=True):
            assert (first.responses.dtype, second.responses.dtype) == (torch.float16, torch.float32)
            assert torch.equal(first.responses.float(), second.responses)


def test_trials_that_cannot_be_trained_on_are_refused_by_name(in_memory, trials):
    with pytest.raises(ValueError, match="beta has no training trials"):
        make_loader(in_memory, {**trials, "beta": ()})
    withheld = select_trials(in_memory, [Tier.LIVE_MAIN], labelled=False)
    with pytest.raises(ValueError, match=r"trials \[99\] of alpha have no responses"):
        make_loader(in_memory, withheld)
    config = LoaderConfig(clip_frames=10)
    with pytest.raises(ValueError, match=r"trials \[0, 8\] of alpha are shorter than a clip, which spans 10"):
        ClipLoader(in_memory, trials, config, seed=0)


def test_a_loader_needs_a_session(trials):
    with pytest.raises(ValueError, match="recordings is empty"):
        make_loader([], trials)


def test_ranks_that_cannot_be_are_refused(in_memory, trials):
    with pytest.raises(ValueError, match="rank is 2, but must be 0 to 1"):
        make_loader(in_memory, trials, rank=2, num_ranks=2)
    with pytest.raises(ValueError, match="batch_size is 4, but must be at least the number of processes, 5"):
        make_loader(in_memory, trials, num_ranks=5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_frames": 0}, "clip_frames is 0"),
        ({"clips_per_session": 0}, "clips_per_session is 0"),
        ({"clip_frames": 151, "frame_step": 2}, "spans 301 frames, but must fit into max_trial_frames, 300"),
    ],
)
def test_a_loader_configuration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(LoaderConfig(), **fields)


@pytest.mark.parametrize("order", ["round", "cycle", "mixed"])
def test_a_store_gives_the_frames_of_its_raw_folder(recordings, raw_folders, order):
    trials = select_trials(recordings, [Tier.TRAIN])
    config = LoaderConfig(clip_frames=20, frame_step=2, batch_size=3, order=order)
    loader = ClipLoader(recordings, trials, config, seed=1)
    folders = {folder.name: folder for folder in raw_folders}
    for step in loader.epoch(0):
        for batch in step:
            for row, (trial, frames) in enumerate(zip(batch.trial.tolist(), batch.frames, strict=True)):
                raw = {
                    name: np.load(folders[batch.session] / "data" / name / f"{trial}.npy")[
                        ..., frames.numpy()
                    ]
                    for name in ("videos", "responses", "behavior", "pupil_center")
                }
                video = np.moveaxis(batch.video[row, 0].numpy(), 0, -1)
                assert abs(video - raw["videos"]).max() <= 0.5
                assert batch.responses.dtype == torch.float16
                np.testing.assert_allclose(batch.responses[row], raw["responses"], rtol=2**-11, atol=1e-7)
                np.testing.assert_allclose(batch.behavior[row], raw["behavior"], rtol=1e-6)
                np.testing.assert_allclose(batch.pupil[row], raw["pupil_center"], rtol=1e-6)


def test_a_pickled_loader_gives_the_same_steps(recordings):
    trials = select_trials(recordings, [Tier.TRAIN])
    config = LoaderConfig(clip_frames=10, batch_size=3)
    loader = ClipLoader(recordings, trials, config, seed=1)
    travelled = pickle.loads(pickle.dumps(loader))
    assert contents(travelled.epoch(1)) == contents(loader.epoch(1))
