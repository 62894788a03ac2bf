"""A population of model V1 cells with known truth: how a video, seen by a moving eye, drives them.

Gabor simple and complex cells with two temporal kernels, direction selectivity (Adelson & Bergen 1985),
divisive normalization (Heeger 1992) and a retinotopic map.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

from data.calcium import LEAD_FRAMES
from data.temporal import TemporalFilter

_FULL_HEIGHT_PX = 36
_MEAN_LUMINANCE, _CONTRAST_UNIT = 80.0, 57.0
_POOL_GRID = (4, 7)
_POOL_ORIENTATIONS = 4
_CELLS_AT_ONCE = 256
_SEMISATURATION = 2.5
"""Added to the pooled energy, which is about 8 in natural movies."""


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
    events_per_second: float,
    cycles_per_px: float = 0.12,
    map_spread_px: tuple[float, float] = (7.0, 12.0),
    scatter: float = 0.4,
    generator: np.random.Generator,
) -> Cells:
    """Draw receptive fields and gains; neighbors in cortex see neighboring places.

    Args:
        coordinates_um: cortical position of each neuron.
        frame_shape: height and width of the videos; sizes scale with the height.
        complex_share: share of complex cells.
        events_per_second: median event rate of the cells.
        cycles_per_px: median preferred spatial frequency, per pixel of a 36 x 64 frame.
        map_spread_px: standard deviation of the map, rows and columns of a 36 x 64 frame.
        scatter: part of the centers' spread that the map leaves open, in standard deviations of the map.
        generator: source of randomness.
    """
    n = len(coordinates_um)
    pixel = frame_shape[0] / _FULL_HEIGHT_PX
    cycles = np.clip(cycles_per_px * np.exp(0.35 * generator.standard_normal(n)), 0.05, 0.25) / pixel
    # Running about doubles V1 rates (Niell & Stryker 2010); pupil adds to it (Reimer et al. 2014); the hidden
    # slow gain makes the noise correlations (Ecker et al. 2014).
    modulation = generator.normal((0.6, 0.1, 0.2), (0.3, 0.1, 0.1), (n, 3))
    return Cells(
        center_px=_centers(
            coordinates_um,
            frame_shape=frame_shape,
            map_spread_px=map_spread_px,
            scatter=scatter,
            generator=generator,
        ),
        sigma_px=0.45 / cycles,
        cycles_per_px=cycles,
        direction=generator.uniform(0, 2 * np.pi, n),
        phase=generator.uniform(0, 2 * np.pi, n),
        directionality=generator.beta(1.2, 1.8, n),
        is_complex=generator.random(n) < complex_share,
        events_per_second=events_per_second * np.exp(0.25 * generator.standard_normal(n)),
        # However often cells fire, the mean response is that of the data set.
        scale=27 * (0.62 / events_per_second) * np.exp(0.65 * generator.standard_normal(n)),
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
        temporal: how they, and what normalizes them, filter over time.
    """

    def __init__(
        self, cells: Cells, *, frame_shape: tuple[int, int], temporal: TemporalFilter | None = None
    ) -> None:
        self.cells = cells
        temporal = temporal or TemporalFilter()
        self._own = _EnergyModel(cells, frame_shape=frame_shape, temporal=temporal)
        # The pool is not the recorded cells themselves: a cell's drive must not depend on who else was
        # recorded.
        self._pool, self._weights = _normalization_pool(
            cells.center_px, frame_shape=frame_shape, temporal=temporal
        )

    def drive(self, video: Float[np.ndarray, "t h w"]) -> Float32[np.ndarray, "n t_lead"]:
        """Return the normalized drive from ``LEAD_FRAMES`` before the video on, when the screen was blank."""
        contrast = np.zeros((LEAD_FRAMES + len(video), video[0].size), np.float32)
        contrast[LEAD_FRAMES:] = (video.reshape(len(video), -1) - _MEAN_LUMINANCE) / _CONTRAST_UNIT
        linear, energy = self._own.respond(contrast)
        pooled = self._weights @ self._pool.respond(contrast)[1]
        amplitude = np.where(self.cells.is_complex[:, None], np.sqrt(energy), np.maximum(linear, 0))
        drive: Float32[np.ndarray, "n t_lead"] = amplitude / np.sqrt(pooled + _SEMISATURATION)
        return drive


class _EnergyModel:
    """Space-time oriented filters and their energy (Adelson & Bergen 1985)."""

    def __init__(self, cells: Cells, *, frame_shape: tuple[int, int], temporal: TemporalFilter) -> None:
        self._temporal = temporal
        self._filters = gabor_filters(cells, frame_shape=frame_shape)
        self._share = ((1 + cells.directionality) / 2).astype(np.float32)[:, None]
        self._cosine = np.cos(cells.phase).astype(np.float32)[:, None]
        self._sine = np.sin(cells.phase).astype(np.float32)[:, None]

    def respond(
        self, contrast: Float32[np.ndarray, "t hw"]
    ) -> tuple[Float32[np.ndarray, "n t"], Float32[np.ndarray, "n t"]]:
        """Return what a linear filter of the cell's phase gives, and the energy of all phases.

        Source:
            Adelson & Bergen 1985, figure 10: sums and differences of even and odd fields with a fast and a
            slow kernel are oriented in space-time.
        """
        projected = self._filters @ contrast.T
        fast, slow = (np.split(projected @ kernel, 2) for kernel in self._temporal.matrices(len(contrast)))
        preferred = (fast[0] - slow[1], fast[1] + slow[0])
        opposite = (fast[0] + slow[1], fast[1] - slow[0])
        linear = self._share * (self._cosine * preferred[0] + self._sine * preferred[1])
        linear += (1 - self._share) * (self._cosine * opposite[0] + self._sine * opposite[1])
        energy = self._share * (preferred[0] ** 2 + preferred[1] ** 2)
        energy += (1 - self._share) * (opposite[0] ** 2 + opposite[1] ** 2)
        return linear, energy


def gabor_filters(cells: Cells, *, frame_shape: tuple[int, int]) -> Float32[np.ndarray, "n2 hw"]:
    """Return the even filters of all cells and then their odd ones; unit energy, blind to uniform light."""
    num_cells = len(cells.sigma_px)
    filters = np.empty((2, num_cells, *frame_shape), np.float32)
    for start in range(0, num_cells, _CELLS_AT_ONCE):
        block = slice(start, start + _CELLS_AT_ONCE)
        row, column, sigma, direction, cycles_per_px = (
            parameter[block, None, None]
            for parameter in (*cells.center_px.T, cells.sigma_px, cells.direction, cells.cycles_per_px)
        )
        rows = np.arange(frame_shape[0])[None, :, None] - row
        columns = np.arange(frame_shape[1])[None, None, :] - column
        envelope = np.exp(-0.5 * (rows**2 + columns**2) / sigma**2)
        turns = 2 * np.pi * cycles_per_px * (rows * np.sin(direction) + columns * np.cos(direction))
        pair = envelope * np.stack([np.cos(turns), np.sin(turns)])
        pair -= envelope * pair.sum((2, 3), keepdims=True) / envelope.sum((1, 2), keepdims=True)
        filters[:, block] = pair / np.sqrt(np.square(pair).sum((2, 3), keepdims=True))
    return filters.reshape(2 * num_cells, -1)


def _centers(
    coordinates_um: Float[np.ndarray, "n 3"],
    *,
    frame_shape: tuple[int, int],
    map_spread_px: tuple[float, float],
    scatter: float,
    generator: np.random.Generator,
) -> Float[np.ndarray, "n 2"]:
    """Map cortex to screen linearly, with scatter: centers spread as told and stay off the edge."""
    size = np.array(frame_shape)
    pixel = frame_shape[0] / _FULL_HEIGHT_PX
    place = coordinates_um[:, 1::-1] - coordinates_um[:, 1::-1].mean(axis=0)
    place = place / np.maximum(place.std(axis=0), 1.0)
    place = 0.9 * place + scatter * generator.standard_normal(place.shape)
    center = (size - 1) / 2 + pixel * np.array(map_spread_px) * place
    margin = 5 * pixel
    clipped: Float[np.ndarray, "n 2"] = np.clip(center, margin, size - 1 - margin)
    return clipped


def _normalization_pool(
    center_px: Float[np.ndarray, "n 2"], *, frame_shape: tuple[int, int], temporal: TemporalFilter
) -> tuple[_EnergyModel, Float32[np.ndarray, "n k"]]:
    """Return a bank of filters all over the frame, and how much each cell's normalization hears of each."""
    pixel = frame_shape[0] / _FULL_HEIGHT_PX
    step = np.array(frame_shape) / np.array(_POOL_GRID)
    places = np.stack(np.meshgrid(*map(np.arange, _POOL_GRID), indexing="ij"), axis=-1).reshape(-1, 2)
    centers = np.repeat((places + 0.5) * step - 0.5, _POOL_ORIENTATIONS, axis=0)
    num_filters = len(centers)
    bank = Cells(
        center_px=centers,
        sigma_px=np.full(num_filters, 0.45 * 8 * pixel),
        cycles_per_px=np.full(num_filters, 0.125 / pixel),
        direction=np.arange(num_filters) % _POOL_ORIENTATIONS * np.pi / _POOL_ORIENTATIONS,
        phase=np.zeros(num_filters),
        directionality=np.zeros(num_filters),
        is_complex=np.ones(num_filters, bool),
        events_per_second=np.zeros(num_filters),
        scale=np.zeros(num_filters),
        modulation=np.zeros((num_filters, 3)),
    )
    distance = np.square((centers[None] - center_px[:, None]) / step).sum(axis=-1)
    weights = np.exp(-0.5 * distance)
    weights /= weights.sum(axis=1, keepdims=True)
    return _EnergyModel(bank, frame_shape=frame_shape, temporal=temporal), weights.astype(np.float32)
