"""A population of model V1 cells with known truth: how a video, seen by a moving eye, drives them.

Gabor simple and complex cells with two temporal kernels, direction selectivity (Adelson & Bergen 1985),
divisive normalization (Heeger 1992) and a retinotopic map.
"""

from dataclasses import dataclass
from math import factorial

import numpy as np
from jaxtyping import Bool, Float, Float32

from data.calcium import LEAD_FRAMES

_FULL_HEIGHT_PX = 36
_MEAN_LUMINANCE, _CONTRAST_UNIT = 80.0, 57.0
_TEMPORAL_TAPS = 15
_TAP_RATE = 0.9
_POOL_GRID = (4, 7)
_SEMISATURATION = 0.3
"""Share of the typical pooled energy that is added to it; measured energy of natural movies is about 1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """The fixed parameters of every neuron: part of the stored truth.

    Attributes:
        center_px: receptive-field center, row and column.
        sigma_px: standard deviation of the Gaussian envelope.
        cycles_per_px: preferred spatial frequency.
        direction: preferred direction of motion, radians; 0 is to the right, pi / 2 downwards.
        phase: preferred phase of a simple cell, radians.
        directionality: 0 (both directions alike) to 1 (the preferred one only).
        is_complex: energy (True) or half-rectified linear (False).
        events_per_second: mean event rate during movies.
        scale: response units per event.
        modulation: log gain per unit of running, pupil and hidden slow gain.
    """

    center_px: Float[np.ndarray, "n 2"]
    sigma_px: Float[np.ndarray, " n"]
    cycles_per_px: Float[np.ndarray, " n"]
    direction: Float[np.ndarray, " n"]
    phase: Float[np.ndarray, " n"]
    directionality: Float[np.ndarray, " n"]
    is_complex: Bool[np.ndarray, " n"]
    events_per_second: Float[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    modulation: Float[np.ndarray, "n 3"]


def draw_cells(
    coordinates_um: Float[np.ndarray, "n 3"],
    *,
    frame_shape: tuple[int, int],
    complex_share: float,
    generator: np.random.Generator,
) -> Cells:
    """Draw receptive fields and gains; neighbors in cortex see neighboring places.

    Args:
        coordinates_um: cortical position of each neuron.
        frame_shape: height and width of the videos; sizes scale with the height.
        complex_share: share of complex cells.
        generator: source of randomness.
    """
    n = len(coordinates_um)
    pixel = frame_shape[0] / _FULL_HEIGHT_PX
    cycles = np.clip(0.12 * np.exp(0.35 * generator.standard_normal(n)), 0.05, 0.25) / pixel
    # Running about doubles V1 rates (Niell & Stryker 2010); pupil adds to it (Reimer et al. 2014); the hidden
    # slow gain makes the noise correlations (Ecker et al. 2014).
    modulation = generator.normal((0.6, 0.1, 0.2), (0.3, 0.1, 0.1), (n, 3))
    return Cells(
        center_px=_centers(coordinates_um, frame_shape=frame_shape, generator=generator),
        sigma_px=0.45 / cycles,
        cycles_per_px=cycles,
        direction=generator.uniform(0, 2 * np.pi, n),
        phase=generator.uniform(0, 2 * np.pi, n),
        directionality=generator.beta(1.2, 1.8, n),
        is_complex=generator.random(n) < complex_share,
        events_per_second=0.64 * np.exp(0.25 * generator.standard_normal(n) - 0.03),
        scale=27 * np.exp(0.65 * generator.standard_normal(n)),
        modulation=modulation,
    )


def draw_coordinates(num_neurons: int, generator: np.random.Generator) -> Float[np.ndarray, "n 3"]:
    """Place neurons as recordings have them: 615 x 615 um, ten planes 200 to 425 um deep, listed by plane."""
    planes = generator.permutation(np.arange(200.0, 450.0, 25.0))
    corner = generator.integers((-1250, -710), (-1030, -650))
    depth = np.sort(generator.integers(0, len(planes), num_neurons))
    across = corner + np.round(generator.uniform(0, 615, (num_neurons, 2)))
    return np.column_stack([across, planes[depth]])


def draw_unit_ids(num_neurons: int, generator: np.random.Generator) -> np.ndarray:
    """Draw ascending ids with gaps: one unit in ten was not a neuron."""
    steps = generator.geometric(0.9, num_neurons)
    return np.cumsum(steps)


class Population:
    """Cells that turn a video, as the eye sees it, into a drive.

    Args:
        cells: their parameters.
        frame_shape: height and width of the videos.
    """

    def __init__(self, cells: Cells, *, frame_shape: tuple[int, int]) -> None:
        self.cells = cells
        self._filters = gabor_filters(cells, frame_shape=frame_shape)
        self._pool_in, self._pool_out = _pooling(cells.center_px, frame_shape=frame_shape)

    def drive(self, video: Float[np.ndarray, "t h w"]) -> Float32[np.ndarray, "n t_lead"]:
        """Return the normalized drive from ``LEAD_FRAMES`` before the video on, when the screen was blank."""
        blank = np.zeros((len(self._filters), LEAD_FRAMES + len(video)), np.float32)
        contrast = (video.reshape(len(video), -1).astype(np.float32) - _MEAN_LUMINANCE) / _CONTRAST_UNIT
        blank[:, LEAD_FRAMES:] = self._filters @ contrast.T
        fast, slow = (blank @ kernel for kernel in temporal_matrices(blank.shape[1]))
        linear, energy = self._oriented(np.split(fast, 2), np.split(slow, 2))
        pooled = self._pool_out @ (self._pool_in @ energy)
        amplitude = np.where(self.cells.is_complex[:, None], np.sqrt(energy), np.maximum(linear, 0))
        drive: Float32[np.ndarray, "n t_lead"] = amplitude / np.sqrt(pooled + _SEMISATURATION)
        return drive

    def _oriented(
        self, fast: list[Float32[np.ndarray, "n t"]], slow: list[Float32[np.ndarray, "n t"]]
    ) -> tuple[Float32[np.ndarray, "n t"], Float32[np.ndarray, "n t"]]:
        """Combine even and odd fields with both kernels into a phase-selective and an energy response.

        Source:
            Adelson & Bergen 1985, figure 10: sums and differences of the four are oriented in space-time.
        """
        preferred = (fast[0] + slow[1], fast[1] - slow[0])
        opposite = (fast[0] - slow[1], fast[1] + slow[0])
        share = ((1 + self.cells.directionality) / 2).astype(np.float32)[:, None]
        cosine = np.cos(self.cells.phase).astype(np.float32)[:, None]
        sine = np.sin(self.cells.phase).astype(np.float32)[:, None]
        linear, energy = (
            share * function(*preferred) + (1 - share) * function(*opposite)
            for function in (lambda even, odd: cosine * even + sine * odd, lambda even, odd: even**2 + odd**2)
        )
        return linear, energy


def gabor_filters(cells: Cells, *, frame_shape: tuple[int, int]) -> Float32[np.ndarray, "n2 hw"]:
    """Return the even filters of all cells and then their odd ones; unit energy, blind to uniform light."""
    rows = np.arange(frame_shape[0])[None, :, None] - cells.center_px[:, 0, None, None]
    columns = np.arange(frame_shape[1])[None, None, :] - cells.center_px[:, 1, None, None]
    direction = cells.direction[:, None, None]
    cycles = (rows * np.sin(direction) + columns * np.cos(direction)) * cells.cycles_per_px[:, None, None]
    envelope = np.exp(-0.5 * (rows**2 + columns**2) / cells.sigma_px[:, None, None] ** 2)
    filters = np.concatenate([envelope * np.cos(2 * np.pi * cycles), envelope * np.sin(2 * np.pi * cycles)])
    envelope = np.concatenate([envelope, envelope])
    filters -= envelope * filters.sum((1, 2), keepdims=True) / envelope.sum((1, 2), keepdims=True)
    filters /= np.sqrt(np.square(filters).sum((1, 2), keepdims=True))
    flat: Float32[np.ndarray, "n2 hw"] = filters.reshape(len(filters), -1).astype(np.float32)
    return flat


def temporal_kernels() -> Float[np.ndarray, "2 taps"]:
    """Return the fast and the slow kernel, 15 frames of 1/30 s, unit energy (Adelson & Bergen 1985)."""
    time = _TAP_RATE * np.arange(_TEMPORAL_TAPS)
    kernels = np.stack(
        [time**n * np.exp(-time) * (1 / factorial(n) - time**2 / factorial(n + 2)) for n in (3, 5)]
    )
    normalized: Float[np.ndarray, "2 taps"] = kernels / np.linalg.norm(kernels, axis=1, keepdims=True)
    return normalized


def temporal_matrices(num_frames: int) -> Float32[np.ndarray, "2 t t"]:
    """Return what convolves traces causally with both kernels, as one matrix product each."""
    lag = np.arange(num_frames)[None, :] - np.arange(num_frames)[:, None]
    inside = (lag >= 0) & (lag < _TEMPORAL_TAPS)
    kernels = temporal_kernels()[:, np.where(inside, lag, 0)]
    return np.where(inside[None], kernels, 0).astype(np.float32)


def _centers(
    coordinates_um: Float[np.ndarray, "n 3"], *, frame_shape: tuple[int, int], generator: np.random.Generator
) -> Float[np.ndarray, "n 2"]:
    """Map cortex to screen linearly, with scatter: centers spread 7 x 12 pixels and stay off the edge."""
    size = np.array(frame_shape)
    pixel = frame_shape[0] / _FULL_HEIGHT_PX
    place = coordinates_um[:, 1::-1] - coordinates_um[:, 1::-1].mean(axis=0)
    place = place / np.maximum(place.std(axis=0), 1.0)
    place = 0.9 * place + 0.4 * generator.standard_normal(place.shape)
    center = (size - 1) / 2 + pixel * np.array([7.0, 12.0]) * place
    margin = 5 * pixel
    clipped: Float[np.ndarray, "n 2"] = np.clip(center, margin, size - 1 - margin)
    return clipped


def _pooling(
    center_px: Float[np.ndarray, "n 2"], *, frame_shape: tuple[int, int]
) -> tuple[Float32[np.ndarray, "g n"], Float32[np.ndarray, "n g"]]:
    """Return two matrices whose product averages over the cells around each cell, through a grid of places.

    A grid keeps the cost linear in the number of cells.
    """
    size = np.array(frame_shape)
    step = size / np.array(_POOL_GRID)
    grid = (
        np.stack(np.meshgrid(*map(np.arange, _POOL_GRID), indexing="ij"), axis=-1).reshape(-1, 2) + 0.5
    ) * step
    distance = np.square((grid[:, None] - center_px[None]) / step).sum(axis=-1)
    weights = np.exp(-0.5 * distance) + 1e-6
    into = weights / weights.sum(axis=1, keepdims=True)
    out = weights.T / weights.T.sum(axis=1, keepdims=True)
    return into.astype(np.float32), out.astype(np.float32)
