from collections import defaultdict

import numpy as np
import pytest

from data.recording import Stimulus
from data.stimuli import Video, cut_times, draw_segment, draw_video, jittered
from data.video_classes import classify_video
from data.videos import NUM_PROJECTIONS, assign_video_ids, grey_levels, is_same_video, sign_video

SHAPE = (12, 20)


def make_video(stimulus: Stimulus, *, number: int = 0, stimulus_set: int = 0, num_frames: int = 120) -> Video:
    return Video(
        video_id=f"{stimulus}-{stimulus_set}-{number}",
        stimulus=stimulus,
        stimulus_set=stimulus_set,
        number=number,
        seed=3,
        num_frames=num_frames,
    )


def show(video: Video, *, generator=None, shape=SHAPE):
    times = cut_times(video)
    if generator is not None:
        times = jittered(times, stimulus=video.stimulus, generator=generator)
    return draw_video(video, frame_shape=shape, times=times)


def sign(video):
    return sign_video(grey_levels(video))


def show_in_order(video: Video, order, *, segment_frames: int):
    return np.concatenate(
        [draw_segment(video, k, num_frames=segment_frames, frame_shape=SHAPE) for k in order]
    )


@pytest.mark.parametrize(("num_frames", "num_movies"), [(120, 25), (60, 25), (300, 5)])
def test_jittered_repeats_share_an_id_and_different_videos_never_do(num_frames, num_movies):
    generator = np.random.default_rng(11)
    videos = [
        make_video(stimulus, number=number, stimulus_set=stimulus_set, num_frames=num_frames)
        for stimulus in Stimulus
        for stimulus_set in range(2)
        for number in range(num_movies if stimulus is Stimulus.MOVIE else 6)
    ]
    shown = [video for video in videos for _ in range(1 if video.stimulus is Stimulus.MOVIE else 3)]
    shown += [video for video in videos if video.number % 2 == 0]
    signatures = [sign(show(video, generator=generator)) for video in shown]
    half = len(shown) // 2
    ids = assign_video_ids({"a": signatures[:half], "b": signatures[half:]})
    ids_of_video, videos_of_id = defaultdict(set), defaultdict(set)
    for video, video_id in zip(shown, [*ids["a"], *ids["b"]], strict=True):
        ids_of_video[video.video_id].add(video_id)
        videos_of_id[video_id].add(video.video_id)
    assert {name for name, ids in ids_of_video.items() if len(ids) > 1} == set()
    assert [names for names in videos_of_id.values() if len(names) > 1] == []


def test_ids_do_not_depend_on_the_order_of_sessions_or_trials():
    generator = np.random.default_rng(2)
    videos = [make_video(stimulus, number=k) for stimulus in Stimulus for k in range(3)]
    first = [sign(show(video, generator=generator)) for video in videos]
    second = [sign(show(video, generator=generator)) for video in reversed(videos)]
    forwards = assign_video_ids({"a": first, "b": second})
    backwards = assign_video_ids({"b": second[::-1], "a": first})
    assert backwards["a"] == forwards["a"]
    assert backwards["b"] == forwards["b"][::-1]
    assert forwards["a"] == forwards["b"][::-1]


@pytest.mark.parametrize("stimulus", [Stimulus.GABOR, Stimulus.PINK_NOISE, Stimulus.GAUSSIAN_DOTS])
@pytest.mark.parametrize("swapped", [(0, 1), (3, 4), (2, 9), (10, 11)])
def test_clips_which_differ_only_in_the_order_of_two_segments_are_different(stimulus, swapped):
    video = make_video(stimulus, num_frames=300)
    segment_frames = {Stimulus.GABOR: 25, Stimulus.PINK_NOISE: 27, Stimulus.GAUSSIAN_DOTS: 9}[stimulus]
    order = list(range(12))
    i, j = swapped
    other = list(order)
    other[i], other[j] = order[j], order[i]
    first = sign(show_in_order(video, order, segment_frames=segment_frames))
    second = sign(show_in_order(video, other, segment_frames=segment_frames))
    assert is_same_video(first, first)
    assert not is_same_video(first, second)


@pytest.mark.parametrize("segment", [0, 7, 34])
def test_a_clip_with_one_dot_of_the_other_polarity_is_different(segment):
    video = show(make_video(Stimulus.GAUSSIAN_DOTS, num_frames=300))
    other = video.copy()
    other[9 * segment : 9 * segment + 9] = 256 - other[9 * segment : 9 * segment + 9]
    assert not is_same_video(sign(video), sign(other))
    assert len(set(assign_video_ids({"a": [sign(video), sign(other)]})["a"])) == 2


def test_gratings_of_any_two_conditions_are_different():
    video = make_video(Stimulus.GABOR, num_frames=300)
    others = [make_video(Stimulus.GABOR, number=number, num_frames=300) for number in range(6)]
    segments = [
        sign(draw_segment(each, segment, num_frames=25, frame_shape=(36, 64)))
        for each in others
        for segment in range(12)
    ]
    assert len(cut_times(video)) == 13
    assert len(set(assign_video_ids({"a": segments})["a"])) == 72


@pytest.mark.parametrize("dropped", [0, 50, 119])
def test_a_repeat_that_lost_or_gained_a_frame_is_the_same_video(dropped):
    video = show(make_video(Stimulus.RANDOM_DOTS))
    shorter = np.delete(video, dropped, axis=0)
    longer = np.insert(video, dropped, video[dropped], axis=0)
    signatures = [sign(each) for each in (video, shorter, longer)]
    assert len(set(assign_video_ids({"a": signatures[:1], "b": signatures[1:]})["b"])) == 1
    assert is_same_video(signatures[1], signatures[2])


@pytest.mark.parametrize("stimulus", [Stimulus.GABOR, Stimulus.GAUSSIAN_DOTS, Stimulus.IMAGES])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_repeat_resampled_between_frames_is_the_same_video(stimulus, share):
    video = show(make_video(stimulus))
    blended = (1 - share) * video[:-1] + share * video[1:]
    assert is_same_video(sign(video), sign(blended))


def test_the_two_halves_of_one_shot_are_different_videos():
    movie = draw_segment(make_video(Stimulus.MOVIE), 0, num_frames=120, frame_shape=SHAPE)
    assert not is_same_video(sign(movie[:60]), sign(movie[60:]))


def test_the_source_precision_does_not_change_the_signature():
    video = show(make_video(Stimulus.MOVIE)).astype(np.float32)
    np.testing.assert_array_equal(sign(video).values, sign(video.astype(np.float64)).values)


def test_projections_keep_distances_between_frames():
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, size=(40, 36, 64)).astype(np.uint8)
    values = sign_video(frames).values.astype(float) * 16
    levels = frames.reshape(40, -1).astype(float)
    for i, j in [(0, 1), (5, 30), (12, 39)]:
        exact = np.square(levels[i] - levels[j]).sum()
        estimated = np.square(values[i] - values[j]).sum() / NUM_PROJECTIONS
        # chi-square with 32 degrees of freedom: standard deviation 25 %.
        assert 0.3 < estimated / exact < 2


def test_an_all_grey_video_equals_itself_and_not_a_brighter_one():
    grey, bright = np.full((30, *SHAPE), 128.0), np.full((30, *SHAPE), 140.0)
    first, second, third = assign_video_ids({"a": [sign(grey), sign(grey), sign(bright)]})["a"]
    assert first == second != third


def test_videos_of_different_sizes_or_lengths_are_different():
    video = np.full((30, 6, 8), 100.0)
    assert not is_same_video(sign(video), sign(np.full((30, 8, 6), 100.0)))
    assert not is_same_video(sign(video), sign(video[:26]))
    ids = assign_video_ids({"a": [sign(video)], "b": [sign(np.full((30, 8, 6), 100.0)), sign(video[:26])]})
    assert len({*ids["a"], *ids["b"]}) == 3


def test_sessions_without_trials_get_no_ids():
    assert assign_video_ids({"a": [], "b": []}) == {"a": (), "b": ()}


@pytest.mark.parametrize("stimulus", list(Stimulus))
@pytest.mark.parametrize(("shape", "num_frames"), [((36, 64), 300), ((18, 32), 150), ((12, 20), 60)])
def test_every_class_is_recognized_in_every_size(stimulus, shape, num_frames):
    generator = np.random.default_rng(4)
    for number in range(3):
        video = make_video(stimulus, number=number, num_frames=num_frames)
        shown = show(video, generator=generator, shape=shape)
        assert classify_video(grey_levels(shown)) is stimulus


def test_movies_as_long_as_pink_noise_stay_movies():
    for number in range(10):
        video = draw_video(make_video(Stimulus.MOVIE, number=number, num_frames=81), frame_shape=SHAPE)
        assert classify_video(grey_levels(video)) is Stimulus.MOVIE


def test_a_grey_video_and_a_movie_with_a_grey_fade_are_movies():
    movie = draw_video(make_video(Stimulus.MOVIE), frame_shape=SHAPE)
    movie[50:60] = 128
    assert classify_video(grey_levels(movie)) is Stimulus.MOVIE
    assert classify_video(np.full((10, 4, 6), 128, np.uint8)) is Stimulus.MOVIE
