"""Cut films into the distinct natural clips of a simulated recording.

Films that come with packages last seconds, a recording's clips twenty minutes. So a clip is not a piece of
a film but a way to look at one: in each of its shots a window of another place and size, perhaps mirrored,
perhaps played backwards. Training clips and the clips that score look at different stretches of every film.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from data.experiment import SimulationConfig, plan_mouse
from data.films import SMALLEST_WINDOW, Film, open_films
from data.recording import Stimulus
from data.stimuli import Video, cut_times, draw_video
from data.videos import VideoSignature, assign_video_ids, grey_levels, sign_video

EVALUATION_SHARE = 0.25
"""Of the end of every film, for the clips of all tiers but train."""
GAP_FRAMES = 10
"""Frames that nobody sees, between the two stretches: neighboring frames are nearly the same."""

_SHORTEST_STRETCH = 15
_FLAT_STD = 2.0
"""Grey levels; a clip that varies less (a black screen, a title) teaches nothing."""
_ATTEMPTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One look at a film.

    Attributes:
        film: its number.
        stretch: first frame and end of what may be shown; playing turns around there.
        start: the frame it begins with.
        direction: 1 forwards, -1 backwards.
        top: upper edge of the window, in the film's decoded pixels.
        left: left edge of the window.
        height: height of the window; its width follows from the screen's shape.
        is_mirrored: left and right exchanged.
    """

    film: int
    stretch: tuple[int, int]
    start: int
    direction: int
    top: float
    left: float
    height: float
    is_mirrored: bool

    def frame_numbers(self, num_frames: int, *, speed: float = 1.0) -> Int[np.ndarray, " t"]:
        """Return which frames of the film are shown, all inside of the stretch.

        Args:
            num_frames: how many are asked for.
            speed: how many times faster than filmed.
        """
        begin, end = self.stretch
        turns = 2 * (end - begin - 1)
        steps = np.floor(speed * np.arange(num_frames)).astype(np.int64)
        place = (self.start - begin + self.direction * steps) % turns
        numbers: np.ndarray = begin + np.minimum(place, turns - place)
        return numbers


class MovieClips:
    """The natural clips of a simulation, drawn from films.

    Every clip is another video by the rule that also groups trials into folds (``data.videos``): whatever
    looks like an earlier one, or is flat, is drawn again, and an error if that does not help.

    Args:
        films: what to look at.
        training: clips of the train tier, of all mice; each has a recipe of its own.
        evaluation: clips of all other tiers.
        frame_shape: height and width of the screen.
    """

    def __init__(
        self,
        films: Sequence[Film],
        *,
        training: Iterable[Video],
        evaluation: Iterable[Video],
        frame_shape: tuple[int, int],
    ) -> None:
        self._films, self._frame_shape = films, frame_shape
        self._stretches = [_stretches(film) for film in films]
        self._shots: dict[Video, tuple[Shot, ...]] = {}
        self._choose({**dict.fromkeys(training, False), **dict.fromkeys(evaluation, True)})
        shown = [[asdict(shot) for shot in shots] for shots in self._shots.values()]
        self.fingerprint = hashlib.sha256(
            repr(([film.fingerprint() for film in films], frame_shape, shown)).encode()
        ).hexdigest()

    @classmethod
    def for_simulation(cls, files: Sequence[Path], config: SimulationConfig) -> "MovieClips":
        """Decode films and draw the clips that a simulation's mice are shown."""
        trials = (trial for mouse in range(config.mice) for trial in plan_mouse(config, mouse).trials)
        shown = {trial.video for trial in trials if trial.video.stimulus is Stimulus.MOVIE}
        videos = sorted(shown, key=lambda video: (video.stimulus_set, video.number))
        return cls(
            open_films(files, frame_shape=config.frame_shape),
            training=[video for video in videos if video.number < config.train_clips],
            evaluation=[video for video in videos if video.number >= config.train_clips],
            frame_shape=config.frame_shape,
        )

    def __len__(self) -> int:
        return len(self._shots)

    def __str__(self) -> str:
        frames = sum(len(film.frames) for film in self._films)
        return (
            f"{len(self)} distinct clips from {len(self._films)} films of {frames} frames; "
            f"the last {EVALUATION_SHARE:.0%} of each film are kept from training"
        )

    def shots(self, video: Video) -> tuple[Shot, ...]:
        """Return the shots of a clip, one for each segment between its cuts."""
        return self._shots[video]

    def draw(self, video: Video, *, times: Sequence[int] | None = None) -> Float[np.ndarray, "t h w"]:
        """Draw a clip, grey levels 0..255.

        Args:
            video: one of the clips.
            times: where the cuts come in this presentation; None for the nominal ones.
        """
        shots = self._shots[video]
        return draw_video(
            video,
            frame_shape=self._frame_shape,
            times=None if times is None else list(times),
            draw=lambda segment, num_frames: self._show(shots[segment], num_frames, speed=video.speed),
        )

    def _choose(self, is_evaluation: dict[Video, bool]) -> None:
        signatures: dict[Video, VideoSignature] = {}
        open_videos = list(is_evaluation)
        for attempt in range(_ATTEMPTS):
            for video in open_videos:
                self._shots[video] = self._draw_shots(video, attempt, is_evaluation=is_evaluation[video])
                frames = grey_levels(self.draw(video))
                if frames.std() > _FLAT_STD:
                    signatures[video] = sign_video(frames)
            distinct = _first_of_each(signatures)
            open_videos = [video for video in is_evaluation if video not in distinct]
            for video in open_videos:
                signatures.pop(video, None)
            if not open_videos:
                return
        raise ValueError(
            f"{len(open_videos)} of {len(is_evaluation)} clips look like others or are flat, whatever is "
            f"tried ({', '.join(film.name for film in self._films)}); add films, or ask for fewer clips"
        )

    def _draw_shots(self, video: Video, attempt: int, *, is_evaluation: bool) -> tuple[Shot, ...]:
        generator = video.generator(3, attempt)
        stretches = [each[int(is_evaluation)] for each in self._stretches]
        lengths = np.array([end - begin for begin, end in stretches], float)
        shots = []
        for _ in pairwise(cut_times(video)):
            film = int(generator.choice(len(stretches), p=lengths / lengths.sum()))
            height, width = self._films[film].frames.shape[1:]
            largest = min(height, width * self._frame_shape[0] / self._frame_shape[1])
            window = largest * SMALLEST_WINDOW ** generator.random()
            shots.append(
                Shot(
                    film=film,
                    stretch=stretches[film],
                    start=int(generator.integers(*stretches[film])),
                    direction=int(generator.choice([-1, 1])),
                    top=float(generator.uniform(0, height - window)),
                    left=float(
                        generator.uniform(0, width - window * self._frame_shape[1] / self._frame_shape[0])
                    ),
                    height=float(window),
                    is_mirrored=bool(generator.random() < 0.5),
                )
            )
        return tuple(shots)

    def _show(self, shot: Shot, num_frames: int, *, speed: float) -> Float[np.ndarray, "t h w"]:
        rows, columns = self._frame_shape
        film = self._films[shot.film].frames
        down = _area_weights(shot.top, shot.height, num_source=film.shape[1], num_out=rows)
        width = shot.height * columns / rows
        across = _area_weights(shot.left, width, num_source=film.shape[2], num_out=columns)
        if shot.is_mirrored:
            across = across[::-1]
        frames = film[shot.frame_numbers(num_frames, speed=speed)].astype(np.float32)
        shown: np.ndarray = np.clip(down @ frames @ across.T, 0, 255)
        return shown


def _stretches(film: Film) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return first frame and end of what training clips and what evaluation clips show of a film."""
    length = len(film.frames)
    begin = length - round(length * EVALUATION_SHARE)
    if min(length - begin, begin - GAP_FRAMES) < _SHORTEST_STRETCH:
        least = round(_SHORTEST_STRETCH / EVALUATION_SHARE)
        raise ValueError(f"{film.name} has {length} frames at 30 Hz, but must have at least {least}")
    return (0, begin - GAP_FRAMES), (begin, length)


def _first_of_each(signatures: dict[Video, VideoSignature]) -> set[Video]:
    """Return the first of the clips that would count as one video."""
    (names,) = assign_video_ids({"clips": list(signatures.values())}).values()
    first: dict[str, Video] = {}
    for video, name in zip(signatures, names, strict=True):
        first.setdefault(name, video)
    return set(first.values())


def _area_weights(
    start: float, length: float, *, num_source: int, num_out: int
) -> Float[np.ndarray, "out source"]:
    """Return the matrix that averages a stretch of pixels, cut anywhere, over ``num_out`` equal parts."""
    edges = start + length * np.arange(num_out + 1) / num_out
    pixels = np.arange(num_source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: np.ndarray = (np.clip(overlap, 0, None) * num_out / length).astype(np.float32)
    return weights
