"""Draw the videos of a simulated recording: natural-like movies and the five out-of-distribution classes.

A video is a list of segments with cuts between them. It is drawn from its recipe whenever it is shown, so no
video is ever stored. Every segment keeps its own time axis and is drawn one frame longer at both ends; a
repeat whose cut comes a frame early or late therefore differs from the others in that frame only, as in the
data set.

The segment structure, sizes and grey levels are those measured in Sensorium 2023 at 30 Hz and 36 x 64
pixels; other frame sizes scale the geometry, shorter clips have fewer segments.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from data.recording import Stimulus

GREY = 128.0
FULL_CLIP_FRAMES = 300
FULL_FRAME_SHAPE = (36, 64)
_JITTER_PROBABILITY = 0.1
"""Chance of a cut coming one frame early, and of its coming one frame late."""

FrameShape = tuple[int, int]
Draw = Callable[[int, FrameShape, int, np.random.Generator], Float[np.ndarray, "t h w"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a class cuts a full-length (300-frame) clip.

    Attributes:
        num_segments: segments in a full-length clip.
        segment_frames: nominal length of each.
        num_conditions: distinct segments of the class; videos of one set share them out without repetition.
    """

    num_segments: int
    segment_frames: int
    num_conditions: int


LAYOUTS = {
    Stimulus.PINK_NOISE: Layout(num_segments=12, segment_frames=27, num_conditions=72),
    Stimulus.GAUSSIAN_DOTS: Layout(num_segments=35, segment_frames=9, num_conditions=210),
    Stimulus.RANDOM_DOTS: Layout(num_segments=4, segment_frames=60, num_conditions=32),
    Stimulus.GABOR: Layout(num_segments=12, segment_frames=25, num_conditions=72),
    Stimulus.IMAGES: Layout(num_segments=20, segment_frames=16, num_conditions=120),
}
"""Sensorium 2023, measured; images count the grey gaps between them as segments."""

_CUTS_PER_CLIP = 1.16
_CUT_SHARE = 0.523
"""52.3 % of the natural clips have a cut; clips have 1.16 on average."""
_SHORTEST_SHOT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """The recipe of one video.

    Attributes:
        video_id: the same video has the same id, also in another mouse.
        stimulus: its class.
        stimulus_set: the set (a pair of mice) it belongs to.
        number: its number among the set's videos of this class.
        seed: the simulation's seed.
        num_frames: length of a natural clip; other classes have as many whole segments as fit best.
        spectrum_exponent: power of a natural clip falls with this power of spatial frequency.
        speed: how many times faster than natural movies a natural clip changes.
    """

    video_id: str
    stimulus: Stimulus
    stimulus_set: int
    number: int
    seed: int
    num_frames: int
    spectrum_exponent: float = 2.95
    """Gives the measured log-log slope of power over 36 x 64 Fourier bins, -2.7 (all mice within 0.03)."""
    speed: float = 1.0

    def generator(self, *purpose: int) -> np.random.Generator:
        """Make the generator of one purpose (0: cuts, 1 and a segment's number: that segment)."""
        stimulus = list(Stimulus).index(self.stimulus)
        return np.random.default_rng([self.seed, self.stimulus_set, stimulus, self.number, *purpose])


def cut_times(video: Video) -> list[int]:
    """Return where the segments begin, and last the number of frames."""
    generator = video.generator(0)
    if video.stimulus is Stimulus.MOVIE:
        return _shot_times(video.num_frames, generator)
    layout = LAYOUTS[video.stimulus]
    num_segments = max(1, round(layout.num_segments * video.num_frames / FULL_CLIP_FRAMES))
    if video.stimulus is Stimulus.IMAGES:
        num_segments += num_segments % 2
        shown = generator.integers(15, 18, num_segments // 2)
        gaps = generator.integers(12, 19, num_segments // 2)
        lengths = np.stack([shown, gaps], axis=1).ravel().tolist()
    else:
        lengths = [layout.segment_frames] * num_segments
    return [0, *np.cumsum(lengths).tolist()]


def jittered(times: list[int], *, stimulus: Stimulus, generator: np.random.Generator) -> list[int]:
    """Move some cuts by a frame, as resampling at measured flip times does between repeats.

    The end stays, except for flashed images, whose trials can be a frame longer.
    """
    probability = [_JITTER_PROBABILITY, 1 - 2 * _JITTER_PROBABILITY, _JITTER_PROBABILITY]
    shifts = generator.choice([-1, 0, 1], size=len(times), p=probability)
    shifts[0] = 0
    shifts[-1] = max(shifts[-1], 0) if stimulus is Stimulus.IMAGES else 0
    return [int(time + shift) for time, shift in zip(times, shifts, strict=True)]


def draw_video(
    video: Video,
    *,
    frame_shape: FrameShape,
    times: list[int] | None = None,
    draw: Callable[[int, int], Float[np.ndarray, "t h w"]] | None = None,
) -> Float[np.ndarray, "t h w"]:
    """Draw a video, grey levels 0..255.

    Args:
        video: what to draw.
        frame_shape: height and width in pixels.
        times: where the cuts come in this presentation (``jittered``); None for the nominal ones.
        draw: draws so many frames of a segment instead of ``draw_segment``.
    """
    nominal = cut_times(video)
    times = nominal if times is None else times
    frames = np.empty((times[-1], *frame_shape), np.float32)
    for segment, (start, stop) in enumerate(pairwise(times)):
        first = nominal[segment] - 1
        length = nominal[segment + 1] - first + 1
        if draw is None:
            drawn = draw_segment(video, segment, num_frames=length, frame_shape=frame_shape)
        else:
            drawn = draw(segment, length)
        frames[start:stop] = drawn[start - first : stop - first]
    return frames


def draw_segment(
    video: Video, segment: int, *, num_frames: int, frame_shape: FrameShape
) -> Float[np.ndarray, "t h w"]:
    """Draw one segment of a video at its own condition."""
    if video.stimulus is Stimulus.IMAGES and segment % 2 == 1:
        return np.full((num_frames, *frame_shape), GREY, np.float32)
    generator = video.generator(1, segment)
    if video.stimulus is Stimulus.MOVIE:
        return _natural_movie(
            num_frames, frame_shape, generator, exponent=video.spectrum_exponent, speed=video.speed
        )
    return DRAW[video.stimulus](num_frames, frame_shape, _condition(video, segment), generator)


def _condition(video: Video, segment: int) -> int:
    """Deal the conditions of a class out to the videos of a set in one shuffled order."""
    if video.stimulus is Stimulus.MOVIE:
        return 0
    layout = LAYOUTS[video.stimulus]
    order = replace(video, number=0).generator(2).permutation(layout.num_conditions)
    return int(order[(video.number * layout.num_segments + segment) % layout.num_conditions])


def _shot_times(num_frames: int, generator: np.random.Generator) -> list[int]:
    # A share of clips without a cut and geometric numbers in the others give both measured figures.
    mean_if_any = _CUTS_PER_CLIP / _CUT_SHARE
    share = 1 - (1 - _CUT_SHARE) ** (num_frames / FULL_CLIP_FRAMES)
    num_cuts = int(generator.geometric(1 / mean_if_any)) if generator.random() < share else 0
    slots = np.arange(_SHORTEST_SHOT, num_frames - _SHORTEST_SHOT + 1, _SHORTEST_SHOT)
    if num_cuts == 0 or len(slots) == 0:
        return [0, num_frames]
    cuts = np.sort(generator.choice(slots, size=min(num_cuts, len(slots)), replace=False))
    return [0, *cuts.tolist(), num_frames]


# --- natural-like movies, images and pink noise: moving noise under a given spectrum


def _frequencies(shape: FrameShape) -> tuple[Float[np.ndarray, "h 1"], Float[np.ndarray, "1 w"]]:
    """Vertical and horizontal frequencies of ``rfft2``, cycles per pixel."""
    vertical = np.fft.fftfreq(shape[0])[:, None].astype(np.float32)
    return vertical, np.fft.rfftfreq(shape[1])[None, :].astype(np.float32)


def _moving_noise(
    num_frames: int,
    shape: FrameShape,
    *,
    power: Float[np.ndarray, "h w"],
    bandwidth: Float[np.ndarray, "h w"],
    advance: Float[np.ndarray, "h w"] | None,
    generator: np.random.Generator,
) -> Float[np.ndarray, "t h2 w2"]:
    """Draw Gaussian noise of unit variance whose Fourier coefficients are first-order autoregressions.

    Args:
        num_frames: frames to draw.
        shape: height and width of the periodic field.
        power: spatial power per ``rfft2`` coefficient, any unit; its mean (0, 0) is ignored.
        bandwidth: half-power temporal frequency of each coefficient, cycles per frame:
            the temporal power is ``1 / (1 + (f / bandwidth) ** 2)``.
        advance: cycles each coefficient moves per frame, for drift.
        generator: source of randomness.
    """
    power = power.copy()
    power[0, 0] = 0.0
    # irfft2 drops the imaginary half of these columns; all others stand for two coefficients.
    weight = np.full(power.shape[1], 2.0)
    weight[[0, -1]] = 1.0
    amplitude = np.sqrt(power / (power * weight).sum()) * (shape[0] * shape[1])
    amplitude[:, [0, -1]] *= np.sqrt(2.0)
    memory = np.exp(-2 * np.pi * bandwidth).astype(np.float32)
    turn = memory * (1.0 if advance is None else np.exp(-2j * np.pi * advance))
    fresh = np.sqrt(1 - memory**2)
    noise = generator.standard_normal((num_frames, *power.shape, 2), dtype=np.float32)
    coefficients = noise.view(np.complex64)[..., 0] * np.float32(np.sqrt(0.5))
    coefficients[1:] *= fresh
    for frame in range(1, num_frames):
        coefficients[frame] += turn * coefficients[frame - 1]
    coefficients *= amplitude
    return np.fft.irfft2(coefficients, s=shape, axes=(1, 2)).astype(np.float32)


_BLACK = -35.0
_MEDIAN_ABOVE_BLACK = 103.0
_LOGNORMAL_SIGMA = 0.5
"""These three give the measured mean 80, standard deviation 57 and median 68 after clipping to 0..255."""


def _natural_movie(
    num_frames: int,
    frame_shape: FrameShape,
    generator: np.random.Generator,
    *,
    exponent: float = 2.95,
    speed: float = 1.0,
) -> Float[np.ndarray, "t h w"]:
    """Draw one shot: power-law noise that changes faster where it is finer, made skewed by an exponential.

    A crop of a field twice as large, because the spectrum of the data set (like that of any film frame)
    includes what the edges of the frame add. Temporal bandwidth as in Dong & Atick 1995: in proportion to
    spatial frequency.
    """
    field = (2 * frame_shape[0], 2 * frame_shape[1])
    vertical, horizontal = _frequencies(field)
    # In units of full-size pixels, so that a small frame shows the same scene with fewer pixels.
    radius = np.hypot(vertical, horizontal) * (frame_shape[0] / FULL_FRAME_SHAPE[0])
    radius[0, 0] = 1.0
    noise = _moving_noise(
        num_frames,
        field,
        power=radius**-exponent,
        bandwidth=speed * (0.004 + 0.25 * radius),
        advance=None,
        generator=generator,
    )[:, : frame_shape[0], : frame_shape[1]]
    return np.clip(_BLACK + _MEDIAN_ABOVE_BLACK * np.exp(_LOGNORMAL_SIGMA * noise), 0, 255)


def _image(
    num_frames: int, frame_shape: FrameShape, condition: int, generator: np.random.Generator
) -> Float[np.ndarray, "t h w"]:
    del condition
    return np.repeat(_natural_movie(1, frame_shape, generator), num_frames, axis=0)


def _pink_noise(
    num_frames: int, frame_shape: FrameShape, condition: int, generator: np.random.Generator
) -> Float[np.ndarray, "t h w"]:
    """Draw 1/f noise in a 15-degree orientation band, drifting at right angles at 20 degrees/s (Monet2)."""
    vertical, horizontal = _frequencies(frame_shape)
    scale = frame_shape[0] / FULL_FRAME_SHAPE[0]
    angle = 2 * np.pi * (condition % 16) / 16
    direction = np.array([np.sin(angle), np.cos(angle)], np.float32)
    radius = np.maximum(np.hypot(vertical, horizontal), 1e-6)
    along = np.abs(vertical * direction[0] + horizontal * direction[1]) / radius
    away = np.degrees(np.arccos(np.clip(along, 0, 1)))
    pixels_per_frame = 20 / 3.4 / 30 * scale
    noise = _moving_noise(
        num_frames,
        frame_shape,
        power=np.exp(-0.5 * (away / 15) ** 2) / radius**2,
        bandwidth=np.full_like(radius, 4 / 30),
        advance=pixels_per_frame * (vertical * direction[0] + horizontal * direction[1]),
        generator=generator,
    )
    return np.clip(127.5 + 55 * noise, 0, 255)


# --- dots and gratings on grey


def _pixel_grid(frame_shape: FrameShape) -> tuple[Float[np.ndarray, "h 1"], Float[np.ndarray, "1 w"]]:
    rows = np.arange(frame_shape[0], dtype=np.float32)[:, None]
    return rows, np.arange(frame_shape[1], dtype=np.float32)[None, :]


def _gaussian_dot(
    num_frames: int, frame_shape: FrameShape, condition: int, generator: np.random.Generator
) -> Float[np.ndarray, "t h w"]:
    """Show one of 105 places (7 x 15) in black or white for the whole segment."""
    place, polarity = condition // 2, 2 * (condition % 2) - 1
    row = (place // 15 + 0.5) / 7 * frame_shape[0] - 0.5
    column = (place % 15 + 0.5) / 15 * frame_shape[1] - 0.5
    scale = frame_shape[0] / FULL_FRAME_SHAPE[0]
    radius = scale * np.clip(5 * np.exp(0.2 * generator.standard_normal()), 4, 9)
    rows, columns = _pixel_grid(frame_shape)
    distance = ((rows - row) ** 2 + (columns - column) ** 2) / radius**2
    # The grey level falls to an eighth at the radius, the visible edge of the dot.
    frame = np.clip(GREY + polarity * GREY * 0.125**distance, 0, 255)
    return np.repeat(frame[None].astype(np.float32), num_frames, axis=0)


_DOT_CONTRAST = 76.5


def _random_dots(
    num_frames: int, frame_shape: FrameShape, condition: int, generator: np.random.Generator
) -> Float[np.ndarray, "t h w"]:
    """Move black and white dots: 8 directions x 2 coherences x 2 speeds; other dots go their own ways."""
    scale = frame_shape[0] / FULL_FRAME_SHAPE[0]
    angle = 2 * np.pi * (condition % 8) / 8
    coherence = (0.5, 1.0)[condition // 8 % 2]
    speed = (0.5, 1.5)[condition // 16] * scale
    num_dots = 48
    angles = np.where(
        generator.random(num_dots) < coherence, angle, generator.uniform(0, 2 * np.pi, num_dots)
    )
    start = generator.uniform(0, frame_shape, (num_dots, 2))
    step = speed * np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    polarity = np.where(np.arange(num_dots) % 2 == 0, 1.0, -1.0)
    position = (start[None] + step[None] * np.arange(num_frames)[:, None, None]) % frame_shape
    radius = max(1.5 * scale, 0.75)
    frames = np.full((num_frames, *frame_shape), GREY, np.float32)
    rows, columns = (axis.ravel() for axis in _pixel_grid(frame_shape))
    for dot in range(num_dots):
        near_rows = np.abs(rows[None] - position[:, dot, :1]) <= radius
        near_columns = np.abs(columns[None] - position[:, dot, 1:]) <= radius
        frames[near_rows[:, :, None] & near_columns[:, None, :]] = GREY + polarity[dot] * _DOT_CONTRAST
    return frames


_GABOR_WAVELENGTHS = (0.18, 0.38, 0.65)
"""Fractions of the patch."""
_GABOR_FREQUENCIES = (0.008, 0.022, 0.055)
"""Cycles per frame."""
_GABOR_PATCH_PX = 20


def _gabor(
    num_frames: int, frame_shape: FrameShape, condition: int, generator: np.random.Generator
) -> Float[np.ndarray, "t h w"]:
    """Drift a grating in a patch in the centre: 8 directions x 3 wavelengths x 3 temporal frequencies."""
    del generator
    patch = _GABOR_PATCH_PX * frame_shape[0] / FULL_FRAME_SHAPE[0]
    angle = 2 * np.pi * (condition % 8) / 8
    wavelength = _GABOR_WAVELENGTHS[condition // 8 % 3] * patch
    frequency = _GABOR_FREQUENCIES[condition // 24]
    rows, columns = _pixel_grid(frame_shape)
    rows, columns = rows - (frame_shape[0] - 1) / 2, columns - (frame_shape[1] - 1) / 2
    inside = (np.abs(rows) <= patch / 2) & (np.abs(columns) <= patch / 2)
    envelope = inside * np.exp(-0.5 * (rows**2 + columns**2) / (patch / 5) ** 2)
    cycles = (rows * np.sin(angle) + columns * np.cos(angle)) / wavelength
    phase = 2 * np.pi * (cycles[None] - frequency * np.arange(num_frames, dtype=np.float32)[:, None, None])
    frames: Float[np.ndarray, "t h w"] = np.clip(GREY + GREY * envelope * np.cos(phase), 0, 255)
    return frames.astype(np.float32)


DRAW: dict[Stimulus, Draw] = {
    Stimulus.PINK_NOISE: _pink_noise,
    Stimulus.GAUSSIAN_DOTS: _gaussian_dot,
    Stimulus.RANDOM_DOTS: _random_dots,
    Stimulus.GABOR: _gabor,
    Stimulus.IMAGES: _image,
}
