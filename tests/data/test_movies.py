from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data.experiment import SimulationConfig, plan_mouse
from data.films import Film
from data.movies import EVALUATION_SHARE, GAP_FRAMES, MovieClips, Shot, _area_weights
from data.recording import Stimulus
from data.simulation import simulate
from data.sources import open_recordings
from data.stimuli import Video, cut_times, jittered
from data.videos import assign_video_ids, grey_levels, sign_video

SHAPE = (12, 16)
CONFIG = SimulationConfig(
    mice=2,
    neurons=4,
    frame_shape=SHAPE,
    train_clips=12,
    videos_per_tier=2,
    repeats=2,
    clip_frames=60,
    movie_speed=1.5,
    seed=3,
)


def film_of(num_frames: int, *, seed: int) -> Film:
    """A field of random blocks that moves to the right."""
    blocks = np.random.default_rng(seed).integers(0, 256, (10, 20)).repeat(6, axis=0).repeat(6, axis=1)
    frames = np.stack([np.roll(blocks, 2 * frame, axis=1) for frame in range(num_frames)])
    return Film(name=f"{seed}.mp4", frames=frames.astype(np.uint8))


@pytest.fixture(scope="module")
def films() -> list[Film]:
    return [film_of(100, seed=0), film_of(160, seed=1)]


@pytest.fixture(scope="module")
def videos() -> list[Video]:
    shown = {trial.video for mouse in range(2) for trial in plan_mouse(CONFIG, mouse).trials}
    return sorted((video for video in shown if video.stimulus is Stimulus.MOVIE), key=lambda v: v.number)


def clips_of(films: list[Film], videos: list[Video]) -> MovieClips:
    return MovieClips(films, training=videos[:12], evaluation=videos[12:], frame_shape=SHAPE)


def frames_seen(movies: MovieClips, videos: list[Video]) -> set[tuple[int, int]]:
    return {
        (shot.film, number)
        for video in videos
        for shot, begin, end in zip(
            movies.shots(video), cut_times(video)[:-1], cut_times(video)[1:], strict=True
        )
        # A segment is drawn a frame longer at both ends, for cuts that come early or late.
        for number in shot.frame_numbers(end - begin + 2, speed=video.speed).tolist()
    }


def test_training_and_evaluation_share_no_frame_and_use_all_films(films, videos):
    movies = clips_of(films, videos)
    training, evaluation = frames_seen(movies, videos[:12]), frames_seen(movies, videos[12:])
    for film in range(2):
        length = len(films[film].frames)
        trained = [number for of, number in training if of == film]
        scored = [number for of, number in evaluation if of == film]
        assert max(scored) < length
        assert max(trained) + GAP_FRAMES < min(scored)
        assert min(scored) >= length * (1 - EVALUATION_SHARE)


def test_clips_are_distinct_videos_and_the_same_again_from_the_same_seed(films, videos):
    movies, again = clips_of(films, videos), clips_of(films, videos)
    drawn = [movies.draw(video) for video in videos]
    (names,) = assign_video_ids({"": [sign_video(grey_levels(clip)) for clip in drawn]}).values()
    assert len(set(names)) == len(videos) == 18
    assert all(clip.shape == (60, *SHAPE) and 0 <= clip.min() < clip.max() <= 255 for clip in drawn)
    assert all(np.array_equal(clip, again.draw(video)) for clip, video in zip(drawn, videos, strict=True))
    assert movies.fingerprint == again.fingerprint
    others = [replace(video, seed=4) for video in videos]
    assert clips_of(films, others).fingerprint != movies.fingerprint


def test_windows_lie_in_the_film_and_differ_in_place_size_direction_and_mirroring(films, videos):
    movies = clips_of(films, videos)
    shots = [shot for video in videos for shot in movies.shots(video)]
    for shot in shots:
        height, width = films[shot.film].frames.shape[1:]
        assert 0 <= shot.top <= height - shot.height + 1e-9
        assert 0 <= shot.left <= width - shot.height * 16 / 12 + 1e-9
        assert 0.4 * 60 - 1e-9 <= shot.height <= 60
    assert len({(shot.top, shot.left, shot.height) for shot in shots}) == len(shots)
    for field in ("film", "direction", "is_mirrored"):
        assert min(Counter(getattr(shot, field) for shot in shots).values()) >= 3
    assert len({len(movies.shots(video)) for video in videos}) > 1


@pytest.mark.parametrize(("direction", "expected"), [(1, [3, 4, 5, 4, 3, 2, 3]), (-1, [3, 2, 3, 4, 5, 4, 3])])
def test_playing_turns_around_at_the_ends_of_the_stretch(direction, expected):
    shot = Shot(
        film=0, stretch=(2, 6), start=3, direction=direction, top=0, left=0, height=1, is_mirrored=False
    )
    np.testing.assert_array_equal(shot.frame_numbers(7), expected)
    np.testing.assert_array_equal(shot.frame_numbers(4, speed=2.0), expected[::2])


def test_a_shot_shows_the_mean_over_areas_of_its_window_mirrored_or_not(films):
    row, column = (
        _area_weights(3, 24, num_source=60, num_out=12),
        _area_weights(5, 32, num_source=120, num_out=16),
    )
    window = films[0].frames[7, 3:27, 5:37].astype(float)
    np.testing.assert_allclose(
        row @ films[0].frames[7] @ column.T, window.reshape(12, 2, 16, 2).mean(axis=(1, 3)), atol=1e-3
    )
    # Cut anywhere: a line of 2.5 pixels in two parts, each with half of the pixel in the middle.
    np.testing.assert_allclose(
        _area_weights(0.5, 2.5, num_source=4, num_out=2), [[0.4, 0.6, 0, 0], [0, 0.2, 0.8, 0]], atol=1e-6
    )
    shot = Shot(film=0, stretch=(0, 9), start=7, direction=1, top=3, left=5, height=24, is_mirrored=False)
    movies = clips_of(films, [])
    plain = movies._show(shot, 1, speed=1.0)
    mirrored = movies._show(replace(shot, is_mirrored=True), 1, speed=1.0)
    np.testing.assert_allclose(plain[0], window.reshape(12, 2, 16, 2).mean(axis=(1, 3)), atol=1e-3)
    np.testing.assert_array_equal(mirrored, plain[..., ::-1])


def test_a_cut_that_comes_early_changes_only_the_frames_at_the_cut(films, videos):
    movies = clips_of(films, videos)
    video = next(video for video in videos if len(cut_times(video)) > 2)
    nominal = cut_times(video)
    times = [nominal[0], nominal[1] - 1, *nominal[2:]]
    differs = np.abs(movies.draw(video, times=times) - movies.draw(video)).max(axis=(1, 2)) > 0
    np.testing.assert_array_equal(np.flatnonzero(differs), [nominal[1] - 1])
    assert jittered(nominal, stimulus=Stimulus.MOVIE, generator=np.random.default_rng(0))[-1] == nominal[-1]


def test_films_that_are_short_or_show_nothing_are_refused(films, videos):
    with pytest.raises(ValueError, match=r"0\.mp4 has 40 frames at 30 Hz, but must have at least 60"):
        clips_of([film_of(40, seed=0)], videos)
    flat = Film(name="black.mp4", frames=np.zeros((100, 60, 120), np.uint8))
    with pytest.raises(ValueError, match=r"18 of 18 clips look like others .* \(black\.mp4\); add films"):
        clips_of([flat], videos)


def test_a_simulation_on_films_shows_them_and_every_clip_keeps_its_own_id(tmp_path, films, videos):
    movies = clips_of(films, videos)
    folders = simulate(tmp_path / "raw", CONFIG, movies=movies)
    recordings = open_recordings(folders, cache=tmp_path / "cache")
    shown = {
        (trial.video_id, trial.tier)
        for recording in recordings
        for trial in recording.trials
        if trial.stimulus is Stimulus.MOVIE
    }
    assert len({video_id for video_id, _ in shown}) == 18
    trains = {video_id for video_id, tier in shown if tier == "train"}
    assert len(trains) == 12
    first = np.load(folders[0] / "data/videos/0.npy")
    assert first.shape[:2] == SHAPE
    with pytest.raises(FileExistsError, match="simulated with other settings"):
        simulate(tmp_path / "raw", CONFIG)
