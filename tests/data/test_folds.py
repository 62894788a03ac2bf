from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.folds import (
    PUBLIC_TIERS,
    SplitConfig,
    assign_folds,
    partner_test_movies,
    select_trials,
    split_trials,
)
from data.recording import Recording, Stimulus, Tier, Trial


class TrialTable(Recording):
    """A recording of which only the table of trials is there."""

    def __init__(self, session, trials):
        self.session = session
        self.trials = tuple(trials)


def make_trial(index, video_id, tier=Tier.TRAIN, *, has_responses=True):
    return Trial(
        index=index,
        tier=tier,
        num_frames=300,
        video_id=str(video_id),
        stimulus=Stimulus.MOVIE,
        has_responses=has_responses,
    )


def make_recording(session, videos_of_tier, *, withheld=()):
    return TrialTable(
        session,
        [
            make_trial(10 * position + row, video, tier, has_responses=tier not in withheld)
            for position, (tier, videos) in enumerate(videos_of_tier.items())
            for row, video in enumerate(videos)
        ],
    )


@pytest.fixture
def pair():
    """Two mice that saw the same movies under permuted tiers; the new one's tests are withheld."""
    new = make_recording(
        "new",
        {Tier.TRAIN: "abcdef", Tier.ORACLE: "uuu", Tier.LIVE_MAIN: "vv", Tier.FINAL_BONUS: "w"},
        withheld={Tier.LIVE_MAIN, Tier.FINAL_BONUS},
    )
    old = make_recording(
        "old",
        {
            Tier.TRAIN: "fedcbx",
            Tier.ORACLE: "vvv",
            Tier.LIVE_MAIN: "uu",
            Tier.FINAL_BONUS: "w",
            Tier.NONE: "z",
        },
        withheld={Tier.NONE},
    )
    return [new, old]


tables = st.dictionaries(
    st.sampled_from(["mouse", "partner", "other"]),
    st.lists(st.integers(0, 12), min_size=6, max_size=40),
    min_size=1,
).filter(lambda table: len({video for videos in table.values() for video in videos}) >= 3)


def as_trials(table):
    return {
        session: [make_trial(index, video) for index, video in enumerate(videos)]
        for session, videos in table.items()
    }


@settings(deadline=None)
@given(table=tables, num_folds=st.integers(2, 3), seed=st.integers(0, 99))
def test_every_video_has_one_fold_and_no_fold_is_empty(table, num_folds, seed):
    fold_of_video = assign_folds(as_trials(table), num_folds=num_folds, seed=seed)
    assert set(fold_of_video) == {str(video) for videos in table.values() for video in videos}
    assert set(fold_of_video.values()) == set(range(num_folds))


@settings(deadline=None)
@given(table=tables, seed=st.integers(0, 99))
def test_folds_do_not_depend_on_the_order_of_sessions_and_trials(table, seed):
    turned = {session: table[session][::-1] for session in reversed(table)}
    folds = [assign_folds(as_trials(each), num_folds=3, seed=seed) for each in (table, turned)]
    assert folds[0] == folds[1]


@settings(deadline=None)
@given(
    videos=st.lists(st.integers(0, 20), min_size=10, max_size=60).filter(lambda v: len(set(v)) >= 3),
    num_folds=st.integers(2, 3),
)
def test_fold_sizes_of_a_session_differ_by_at_most_the_repeats_of_one_video(videos, num_folds):
    fold_of_video = assign_folds(as_trials({"mouse": videos}), num_folds=num_folds, seed=0)
    sizes = Counter(fold_of_video[str(video)] for video in videos)
    assert max(sizes.values()) - min(sizes.values()) <= max(Counter(videos).values())


def test_folds_are_balanced_in_each_of_ten_paired_mice():
    table = {f"old{k}": [f"{k}.{video}" for video in range(350)] for k in range(5)}
    table |= {f"new{k}": [f"{k}.{video}" for video in range(6, 352)] for k in range(5)}
    fold_of_video = assign_folds(as_trials(table), num_folds=7, seed=1)
    for videos in table.values():
        sizes = Counter(fold_of_video[video] for video in videos)
        assert max(sizes.values()) - min(sizes.values()) <= 2


def test_another_seed_gives_other_folds():
    trials = as_trials({"mouse": list(range(20))})
    first, second = (assign_folds(trials, num_folds=4, seed=seed) for seed in (0, 1))
    assert first != second


def test_more_folds_than_videos_are_refused():
    with pytest.raises(ValueError, match="num_folds is 4, but must be at most the number of videos, 3"):
        assign_folds(as_trials({"mouse": [1, 2, 3, 3]}), num_folds=4, seed=0)


@pytest.mark.parametrize("fold", range(3))
def test_a_held_out_video_is_not_trained_on_in_any_mouse(pair, fold):
    split = split_trials(pair, SplitConfig(tiers=PUBLIC_TIERS, num_folds=3, fold=fold))
    trained_on, held_out = (
        {trial.video_id for trials in part.values() for trial in trials}
        for part in (split.train, split.held_out)
    )
    assert trained_on
    assert held_out
    assert not trained_on & held_out


def test_the_held_out_folds_together_are_the_train_tier(pair):
    held_out = [split_trials(pair, SplitConfig(num_folds=3, fold=fold)).held_out for fold in range(3)]
    for recording in pair:
        indices = [trial.index for part in held_out for trial in part[recording.session]]
        assert sorted(indices) == [t.index for t in recording.trials if t.tier == Tier.TRAIN]


def test_without_a_fold_everything_is_trained_on(pair):
    split = split_trials(pair, SplitConfig(fold=None))
    assert {session: len(trials) for session, trials in split.train.items()} == {"new": 6, "old": 6}
    assert split.held_out == {"new": (), "old": ()}


def test_public_tiers_are_all_tiers_of_old_mice_and_train_and_oracle_of_new_ones(pair):
    trials = select_trials(pair, PUBLIC_TIERS)
    assert {trial.tier for trial in trials["new"]} == {Tier.TRAIN, Tier.ORACLE}
    assert {trial.tier for trial in trials["old"]} == set(Tier) - {
        Tier.NONE,
        Tier.LIVE_BONUS,
        Tier.FINAL_MAIN,
    }


def test_withheld_trials_can_be_selected_for_prediction(pair):
    trials = select_trials(pair, [Tier.LIVE_MAIN], labelled=False)
    assert {session: len(of_session) for session, of_session in trials.items()} == {"new": 2, "old": 2}


def test_a_session_without_training_trials_is_refused_by_name(pair):
    with pytest.raises(ValueError, match="new has no trial with responses in the tiers live_test_main"):
        split_trials(pair, SplitConfig(tiers=(Tier.LIVE_MAIN,)))


def test_training_on_the_train_tiers_uses_no_test_movie(pair):
    assert partner_test_movies(pair, split_trials(pair, SplitConfig(fold=None)).train) == frozenset()


def test_training_on_the_old_mouses_tests_is_flagged_although_only_the_partner_is_scored(pair):
    new, old = pair
    train = select_trials([old], [Tier.TRAIN, Tier.LIVE_MAIN, Tier.FINAL_BONUS])
    assert partner_test_movies([new], train) == {"u", "w"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fold": 7}, "fold is 7, but must be 0 to 6, or None"),
        ({"num_folds": 1}, "num_folds is 1"),
        ({"tiers": ()}, "tiers is empty"),
    ],
)
def test_a_split_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**fields)


def test_converted_partners_share_folds_and_flag_each_others_test_movies(recordings):
    split = split_trials(recordings, SplitConfig(num_folds=4, fold=1))
    held_out = [{trial.video_id for trial in trials} for trials in split.held_out.values()]
    assert held_out[0] == held_out[1]
    assert len(held_out[0]) == 3
    assert not partner_test_movies(recordings, split.train)
    everything = select_trials(recordings, PUBLIC_TIERS)
    assert len(partner_test_movies(recordings, everything)) == 6
