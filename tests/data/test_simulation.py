import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.experiment import BONUS_CLASSES, MAIN_TIERS, TEST_TIERS, SimulationConfig, plan_mouse, session_name
from data.raw_format import SESSION_PATTERN
from data.recording import Stimulus, Tier
from data.simulation import count_trials, simulate
from data.truth import Truth

TINY = SimulationConfig(
    mice=2,
    neurons=(5, 7),
    frame_shape=(12, 20),
    train_clips=6,
    videos_per_tier=2,
    repeats=3,
    clip_frames=40,
    signal_power=0.15,
    seed=1,
)
FULL = SimulationConfig()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> list[Path]:
    return simulate(tmp_path_factory.mktemp("simulated"), TINY)


def tiers_of(folder: Path) -> list[Tier]:
    return [Tier(tier) for tier in np.load(folder / "meta/trials/tiers.npy", allow_pickle=False)]


def load(folder: Path, name: str, index: int) -> np.ndarray:
    return np.load(folder / "data" / name / f"{index}.npy", allow_pickle=False)


def valid_frames(array: np.ndarray) -> int:
    return int(np.isfinite(array.reshape(-1, array.shape[-1])).all(axis=0).sum())


def fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_first_mouse_is_old_and_float32_and_its_partner_new_and_float64(simulated):
    for folder, dtype, neurons in zip(simulated, (np.float32, np.float64), (5, 7), strict=True):
        for name in ("videos", "responses", "behavior", "pupil_center"):
            assert load(folder, name, 0).dtype == dtype
        assert len(load(folder, "responses", 0)) == neurons
        assert len(np.load(folder / "meta/neurons/unit_ids.npy")) == neurons
    old, new = ({path.name for path in (folder / "meta/trials").iterdir()} for folder in simulated)
    assert old == {"tiers.npy"}
    assert new == {
        f"{n}.npy" for n in ("tiers", "trial_idx", "animal_id", "session", "scan_idx", "target_fps")
    }


def test_all_arrays_are_padded_with_nan_to_the_longest_trial(simulated):
    for folder in simulated:
        truth = Truth.of(folder)
        longest = max(true.trial.num_frames for true in truth.trials.values())
        for index, true in truth.trials.items():
            for name in ("videos", "pupil_center"):
                array = load(folder, name, index)
                assert array.shape[-1] == longest
                assert valid_frames(array) == true.trial.num_frames
            assert true.trial.num_frames - valid_frames(load(folder, "behavior", index)) in (0, 1)


def test_new_mice_withhold_their_test_tiers_as_zeros_and_old_mice_nothing(simulated):
    old, new = simulated
    assert all(np.nanmax(load(old, "responses", index)) > 0 for index in range(len(tiers_of(old))))
    for index, tier in enumerate(tiers_of(new)):
        responses = load(new, "responses", index)
        if tier in TEST_TIERS:
            np.testing.assert_array_equal(responses, np.zeros_like(responses))
        else:
            assert np.nanmax(responses) > 0


def test_the_answer_key_holds_exactly_the_withheld_responses(simulated):
    for folder in simulated:
        truth = Truth.of(folder)
        for index, tier in enumerate(tiers_of(folder)):
            true = truth.trials[index].trial
            assert true.tier == tier
            if true.has_responses:
                with pytest.raises(ValueError, match="is not withheld"):
                    truth.answer(index)
            else:
                answer = truth.answer(index)
                assert answer.shape == (len(truth.cells.scale), true.num_frames)
                assert answer.max() > 0


def test_lost_trials_stay_as_tier_none_in_old_mice_and_vanish_in_new_ones(simulated):
    old, new = (Counter(tiers_of(folder)) for folder in simulated)
    shown = 6 + 3 * 2 * 3 + (2 + 2) * 3 + 3 * 3
    assert old[Tier.NONE] >= 1
    assert sum(old.values()) == shown
    assert new[Tier.NONE] == 0
    assert sum(new.values()) < shown


def test_full_size_tiers_have_the_counts_of_the_data_set():
    for mouse in range(FULL.mice):
        trials = plan_mouse(FULL, mouse).trials
        count = Counter(trial.tier for trial in trials)
        assert 329 <= count[Tier.TRAIN] <= 360
        repeats = Counter((t.tier, t.video.video_id) for t in trials if t.tier not in (Tier.TRAIN, Tier.NONE))
        assert {9, 10} <= set(repeats.values()) <= {8, 9, 10}
        for tier in MAIN_TIERS:
            assert 53 <= count[tier] <= 60
            assert sum(key[0] is tier for key in repeats) == 6
        trains = Counter(trial.video.video_id for trial in trials if trial.tier is Tier.TRAIN)
        assert set(trains.values()) == {1}
        live, final = BONUS_CLASSES[mouse]
        shown = {tier: {t.video.stimulus for t in trials if t.tier is tier} for tier in Tier}
        assert shown[Tier.LIVE_BONUS] == set(live)
        assert shown[Tier.FINAL_BONUS] == set(final)


def test_partners_share_movies_under_permuted_tiers_and_no_video_crosses_tiers_within_a_mouse():
    for pair in range(5):
        tiers: list[dict[str, set[Tier]]] = []
        for mouse in (2 * pair, 2 * pair + 1):
            of_video = defaultdict(set)
            for trial in plan_mouse(FULL, mouse).trials:
                if trial.tier is not Tier.NONE:
                    of_video[trial.video.video_id].add(trial.tier)
            assert all(len(found) == 1 for found in of_video.values())
            tiers.append(of_video)
        common = set(tiers[0]) & set(tiers[1])
        assert len(common) > 0.9 * len(tiers[0])
        tests = {video for video, found in tiers[1].items() if found & {*TEST_TIERS, Tier.ORACLE}}
        assert tests <= set(tiers[0])
        assert any(tiers[0][video] != tiers[1][video] for video in tests)
        assert all(tiers[0][video] == tiers[1][video] for video in common - tests)
    assert not set(tiers[0]) & {trial.video.video_id for trial in plan_mouse(FULL, 0).trials}


def test_some_test_trials_have_a_behavior_array_that_ends_a_frame_early():
    trials = plan_mouse(FULL, 1).trials
    short = [trial for trial in trials if trial.behavior_frames != trial.num_frames]
    assert 0 < len(short) < 40
    assert all(trial.num_frames - trial.behavior_frames == 1 and trial.tier in TEST_TIERS for trial in short)


def test_sessions_are_named_like_real_ones_and_differently_for_every_mouse_and_seed():
    names = [session_name(seed, mouse) for seed in range(3) for mouse in range(10)]
    assert len(set(names)) == 30
    assert all(SESSION_PATTERN.fullmatch(name) for name in names)
    assert session_name(0, 3) == session_name(0, 3)


def test_image_trials_join_the_numbers_of_their_presentations():
    trials = plan_mouse(FULL, 3).trials
    for trial in trials:
        parts = trial.trial_idx.split("--")
        assert len(parts) == (10 if trial.video.stimulus is Stimulus.IMAGES else 1)
        assert all(part.isdigit() for part in parts)
    assert len({trial.trial_idx for trial in trials}) == len(trials)


def test_the_same_seed_gives_the_same_bytes(tmp_path, simulated):
    again = simulate(tmp_path / "again", TINY)
    assert [fingerprint(folder) for folder in again] == [fingerprint(folder) for folder in simulated]


def test_a_complete_mouse_is_kept_and_one_of_other_settings_is_refused(tmp_path):
    config = SimulationConfig(
        mice=1,
        neurons=3,
        frame_shape=(12, 20),
        train_clips=4,
        videos_per_tier=1,
        repeats=2,
        clip_frames=30,
        signal_power=0.05,
    )
    calls = []
    (folder,) = simulate(tmp_path, config, on_progress=lambda *progress: calls.append(progress))
    assert calls[-1] == (folder.name, count_trials(config), count_trials(config))
    calls.clear()
    assert simulate(tmp_path, config, on_progress=lambda *progress: calls.append(progress)) == [folder]
    assert calls == []
    other = SimulationConfig.for_scale("demo", mice=1)
    with pytest.raises(FileExistsError, match="was simulated with other settings"):
        simulate(tmp_path, other)


@pytest.fixture(scope="module")
def quick_cells(tmp_path_factory) -> Path:
    """A mouse whose cells filter over time as those of the demo do."""
    demo = SimulationConfig.for_scale("demo")
    temporal = {name: getattr(demo, name) for name in ("tap_rate", "rebound", "latency_frames")}
    assert temporal != {name: getattr(TINY, name) for name in temporal}
    return simulate(tmp_path_factory.mktemp("quick"), replace(TINY, mice=1, neurons=5, **temporal))[0]


@pytest.mark.parametrize("cells", ["real", "quick"])
def test_expected_responses_are_the_mean_of_what_the_mouse_would_do(simulated, quick_cells, cells):
    folder = simulated[0] if cells == "real" else quick_cells
    truth = Truth.of(folder)
    total = defaultdict(list)
    for index, true in truth.trials.items():
        responses = load(folder, "responses", index)[:, : true.trial.num_frames]
        total["responses"].append(responses)
        for gain in ("none", "behavior", "all"):
            total[gain].append(truth.expected_responses(index, gain=gain))
    joined = {name: np.concatenate(parts, axis=1) for name, parts in total.items()}
    expected = joined["all"].mean(axis=1)
    events = expected / truth.cells.scale * joined["responses"].shape[1] / 3.75
    error = 2 * expected / np.sqrt(events)
    assert (np.abs(joined["responses"].mean(axis=1) - expected) < 4 * error).all()

    def correlation(name: str) -> float:
        pairs = zip(joined[name], joined["responses"], strict=True)
        return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs]))

    assert correlation("all") > 0.2
    assert correlation("all") >= correlation("behavior") - 0.02
    assert correlation("all") > correlation("none") - 0.02


def test_the_truth_says_which_trials_show_the_same_video(simulated):
    truth = Truth.of(simulated[0])
    by_video = defaultdict(list)
    for index, true in truth.trials.items():
        by_video[true.trial.video_id].append(index)
    videos = {index: load(simulated[0], "videos", index) for index in truth.trials}
    for same in by_video.values():
        lengths = [truth.trials[index].trial.num_frames for index in same]
        frames = min(lengths)
        first = videos[same[0]][..., :frames]
        for index in same[1:]:
            assert (videos[index][..., :frames] == first).all(axis=(0, 1)).mean() > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mice": 0}, "mice is 0, but must be at least 1"),
        ({"neurons": (3,)}, "must be one number for each of 10 mice"),
        ({"neurons": 0}, "neurons is 0"),
        ({"frame_shape": (4, 64)}, "frame_shape is"),
        ({"signal_power": 1.5}, "signal_power is 1.5"),
        ({"gaze_reach_px": -1.0}, "gaze_reach_px is -1.0"),
        ({"map_spread_px": (0.0, 1.0)}, "map_spread_px is (0.0, 1.0), but must be positive"),
        ({"retinotopic_scatter": -1.0}, "retinotopic_scatter is -1.0, but must not be negative"),
        ({"cycles_per_px": 0.0}, "cycles_per_px is 0.0, but must be above 0"),
        ({"tap_rate": 0.0}, "tap_rate is 0.0, but must be above 0"),
        ({"rebound": 1.2}, "rebound is 1.2, but must be between 0 and 1"),
        ({"latency_frames": 3.0}, "latency_frames is 3.0, but must be between 0 and 2.4"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SimulationConfig(**change)


def test_an_unknown_scale_lists_the_known_ones():
    with pytest.raises(ValueError, match="scale is 'huge', but must be one of demo, full"):
        SimulationConfig.for_scale("huge")
