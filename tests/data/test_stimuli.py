from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from data.recording import Stimulus
from data.stimuli import LAYOUTS, Video, cut_times, draw_segment, draw_video, jittered

SMALL = (12, 20)
BONUS = [stimulus for stimulus in Stimulus if stimulus is not Stimulus.MOVIE]


def make_video(stimulus: Stimulus, number: int = 0, *, num_frames: int = 300) -> Video:
    return Video(
        video_id="v", stimulus=stimulus, stimulus_set=0, number=number, seed=3, num_frames=num_frames
    )


@pytest.mark.parametrize(
    ("stimulus", "num_frames", "segment_frames"),
    [
        (Stimulus.PINK_NOISE, 324, 27),
        (Stimulus.GAUSSIAN_DOTS, 315, 9),
        (Stimulus.RANDOM_DOTS, 240, 60),
        (Stimulus.GABOR, 300, 25),
    ],
)
def test_full_length_videos_have_the_measured_segments(stimulus, num_frames, segment_frames):
    times = cut_times(make_video(stimulus))
    assert times[-1] == num_frames
    assert {later - earlier for earlier, later in pairwise(times)} == {segment_frames}


def test_ten_images_of_half_a_second_stand_between_grey_gaps():
    for number in range(6):
        video = make_video(Stimulus.IMAGES, number)
        times = cut_times(video)
        lengths = np.diff(times)
        assert len(lengths) == 20
        assert set(lengths[::2]) <= {15, 16, 17}
        assert lengths[1::2].min() >= 11
        assert lengths[1::2].max() <= 18
        frames = draw_video(video, frame_shape=SMALL)
        assert all((frames[start:stop] == 128).all() for start, stop in list(pairwise(times))[1::2])
        assert all(frames[start:stop].std() > 1 for start, stop in list(pairwise(times))[::2])


def test_natural_clips_are_cut_as_often_as_measured():
    cuts = np.array([len(cut_times(make_video(Stimulus.MOVIE, number))) - 2 for number in range(3000)])
    assert abs((cuts == 0).mean() - 0.477) < 0.03
    assert abs(cuts.mean() - 1.16) < 0.08


@pytest.mark.parametrize("stimulus", BONUS)
def test_shorter_clips_have_fewer_whole_segments(stimulus):
    nominal = LAYOUTS[stimulus].segment_frames
    times = cut_times(make_video(stimulus, num_frames=120))
    assert abs(times[-1] - 120) <= 2 * nominal
    assert min(np.diff(times)) >= min(nominal, 12)


@pytest.mark.parametrize("stimulus", list(Stimulus))
def test_grey_levels_are_those_of_a_screen_and_repeats_are_drawn_alike(stimulus):
    video = make_video(stimulus, num_frames=60)
    frames = draw_video(video, frame_shape=SMALL)
    assert frames.dtype == np.float32
    assert frames.shape[1:] == SMALL
    assert 0 <= frames.min() < frames.max() <= 255
    np.testing.assert_array_equal(frames, draw_video(video, frame_shape=SMALL))


@pytest.mark.parametrize("stimulus", [Stimulus.MOVIE, Stimulus.PINK_NOISE, Stimulus.GAUSSIAN_DOTS])
def test_a_jittered_repeat_differs_only_in_frames_beside_a_moved_cut(stimulus):
    candidates = (make_video(stimulus, number, num_frames=90) for number in range(20))
    video = next(candidate for candidate in candidates if len(cut_times(candidate)) > 2)
    nominal = cut_times(video)
    moved = jittered(nominal, stimulus=stimulus, generator=np.random.default_rng(0))
    moved[1] = nominal[1] - 1
    one = draw_video(video, frame_shape=SMALL)
    other = draw_video(video, frame_shape=SMALL, times=moved)
    allowed = {min(a, b) for a, b in zip(nominal, moved, strict=True) if a != b}
    different = set(np.flatnonzero((one != other).any(axis=(1, 2))).tolist())
    assert nominal[1] - 1 in different
    assert different <= allowed


def test_cuts_move_by_one_frame_at_most_and_only_image_trials_change_length():
    times = list(range(0, 320, 16))
    for seed in range(50):
        generator = np.random.default_rng(seed)
        moved = jittered(times, stimulus=Stimulus.PINK_NOISE, generator=generator)
        assert moved[0] == 0
        assert moved[-1] == times[-1]
        assert np.abs(np.subtract(moved, times)).max() <= 1
    ends = {
        jittered(times, stimulus=Stimulus.IMAGES, generator=np.random.default_rng(seed))[-1] - times[-1]
        for seed in range(50)
    }
    assert ends == {0, 1}


def test_natural_movies_have_the_measured_spectrum_and_grey_levels():
    videos = [make_video(Stimulus.MOVIE, number, num_frames=40) for number in range(60)]
    frames = np.concatenate([draw_video(video, frame_shape=(36, 64))[::20] for video in videos])
    assert abs(frames.mean() - 80) < 5
    assert abs(frames.std() - 57) < 4
    assert abs(np.median(frames) - 68) < 5
    log_power = np.log(np.square(np.abs(np.fft.fft2(frames, norm="ortho"))).mean(axis=0))
    index = np.hypot(np.fft.fftfreq(36, 1 / 36)[:, None], np.fft.fftfreq(64, 1 / 64)[None])
    slope = np.polyfit(np.log(index[index > 0]), log_power[index > 0], 1)[0]
    assert abs(slope + 2.7) < 0.1


def test_a_smaller_spectrum_exponent_moves_power_to_finer_structure():
    def fine_share(exponent: float) -> float:
        video = replace(make_video(Stimulus.MOVIE, num_frames=40), spectrum_exponent=exponent)
        frame = draw_video(video, frame_shape=(36, 64))[0]
        power = np.square(np.abs(np.fft.fft2(frame - frame.mean())))
        radius = np.hypot(np.fft.fftfreq(36)[:, None], np.fft.fftfreq(64)[None])
        return float(power[radius > 0.1].sum() / power.sum())

    assert fine_share(1.0) > 2 * fine_share(2.95)


def test_natural_movies_change_faster_where_they_are_finer():
    frames = draw_segment(make_video(Stimulus.MOVIE), 0, num_frames=300, frame_shape=(36, 64))
    window = np.outer(np.hanning(36), np.hanning(64))
    spectrum = np.fft.fft2((frames - frames.mean(axis=0)) * window)

    def memory(row: int) -> float:
        coefficient = spectrum[:, row, row]
        product = (coefficient[1:] * coefficient[:-1].conj()).real
        return float(product.sum() / np.square(np.abs(coefficient)).sum())

    assert memory(1) > memory(6) > memory(16)


@pytest.mark.parametrize("stimulus", [Stimulus.GAUSSIAN_DOTS, Stimulus.RANDOM_DOTS, Stimulus.GABOR])
def test_the_segments_of_a_set_are_all_different(stimulus):
    layout = LAYOUTS[stimulus]
    num_videos = layout.num_conditions // layout.num_segments
    drawn = {
        draw_segment(make_video(stimulus, number), segment, num_frames=4, frame_shape=(36, 64)).tobytes()
        for number in range(num_videos)
        for segment in range(layout.num_segments)
    }
    assert len(drawn) == layout.num_conditions


def test_random_dots_have_the_measured_range_on_grey():
    frames = draw_video(make_video(Stimulus.RANDOM_DOTS, num_frames=60), frame_shape=(36, 64))
    assert set(np.unique(frames)) == {128 - 76.5, 128.0, 128 + 76.5}
    assert (frames == 128).mean() > 0.5


def test_a_gaussian_dot_is_one_blob_of_one_polarity_that_stands_still():
    video = make_video(Stimulus.GAUSSIAN_DOTS)
    for segment in range(35):
        frames = draw_segment(video, segment, num_frames=3, frame_shape=(36, 64))
        assert (frames == frames[0]).all()
        away = frames[0] - 128
        assert away.min() > -1 or away.max() < 1
        rows, columns = np.nonzero(np.abs(away) > 16)
        assert 2 <= np.ptp(rows) <= 18
        assert 2 <= np.ptp(columns) <= 18


def test_pink_noise_lies_in_one_orientation_and_moves_across_it():
    video = make_video(Stimulus.PINK_NOISE)
    frames = draw_segment(video, 0, num_frames=60, frame_shape=(36, 64))
    power = np.square(np.abs(np.fft.fft2(frames - frames.mean((1, 2), keepdims=True)))).mean(axis=0)
    vertical, horizontal = np.fft.fftfreq(36)[:, None], np.fft.fftfreq(64)[None]
    angle = np.arctan2(vertical, horizontal)
    preferred = np.angle((power * np.exp(2j * angle)).sum()) / 2
    away = np.degrees(np.abs(np.angle(np.exp(2j * (angle - preferred)))) / 2)
    assert power[away < 30].sum() > 0.75 * power.sum()


def test_the_gabor_patch_leaves_the_measured_margins_grey():
    frames = draw_video(make_video(Stimulus.GABOR), frame_shape=(36, 64))
    assert (frames[:, :, :22] == 128).all()
    assert (frames[:, :, -22:] == 128).all()
    assert (frames[:, :8] == 128).all()
    assert (frames[:, -8:] == 128).all()
    assert frames[:, 8:-8, 22:-22].std() > 5
