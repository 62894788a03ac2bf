"""One pass over members' predictions: the packed moments of a block of neurons, clip by clip."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from ensembles.clips import ScoredTrial, SessionPlan
from ensembles.official_responses import OfficialResponses
from ensembles.packed_moments import MomentSum, num_values
from training.prediction_info import PredictionError

TILE = 128
"""Neurons at a time: 33 traces of 250 frames of so many neurons are 4 MB, near what a core caches."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workspace:
    """Memory that one thread uses again and again: fresh pages for every trial would cost more than reading.

    Attributes:
        stored: what was read, by member, of whatever type the files have.
        rows: float32 traces.
    """

    stored: np.ndarray
    rows: Tensor

    def traces(self, num_rows: int, num_neurons: int, num_frames: int) -> Float32[Tensor, "rows n t"]:
        """Return rows of a trial; what they hold is undefined."""
        size = num_rows * num_neurons * num_frames
        return self.rows[:size].view(num_rows, num_neurons, num_frames)


class SessionReader:
    """Reads one session's predictions and responses; use as a context manager. Threads may share it.

    Files are read, not mapped: mapped pages would count as memory of the process.

    Args:
        plan: what is read.
    """

    def __init__(self, plan: SessionPlan) -> None:
        self.plan = plan
        self.responses = OfficialResponses(plan.recording)
        self._files = [
            _PredictionFile.open(file.path, file.values, window=file.info.window[0]) for file in plan.files
        ]
        self._alike = _runs([(file.dtype.str, file.shape, file.window) for file in self._files])

    def __enter__(self) -> "SessionReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            os.close(file.descriptor)

    def announce(self, neurons: slice) -> None:
        """Tell the operating system that a block of neurons will be read."""
        for file in self._files:
            for row in range(file.shape[0]):
                start, length = file.extent(row, neurons)
                os.posix_fadvise(file.descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def workspace(self) -> Workspace:
        """Return memory for one thread that reads."""
        num_frames = max(file.shape[2] for file in self._files)
        # The widest values there are, float64, so that any file fits.
        stored = np.empty((len(self._files), TILE * num_frames), dtype=np.float64)
        return Workspace(stored=stored, rows=torch.empty((len(self._files) + 2) * TILE * num_frames))

    def read(
        self, scored: ScoredTrial, neurons: slice, into: Float32[Tensor, "k n t"], workspace: Workspace
    ) -> None:
        """Read the scored frames of one trial, all members.

        Args:
            scored: the trial.
            neurons: consecutive ones, at most ``TILE``.
            into: what is overwritten.
            workspace: what is read into.
        """
        size = neurons.stop - neurons.start
        for alike in self._alike:
            file = self._files[alike.start]
            width = file.shape[2]
            stored = workspace.stored[alike].view(file.dtype)[:, : size * width]
            for member, line in zip(range(alike.start, alike.stop), stored, strict=True):
                self._files[member].read(scored.row, neurons, line)
            frames = slice(scored.first - file.window, scored.stop - file.window)
            # One copy for all: torch converts half precision ten times as fast as numpy.
            values = torch.from_numpy(stored).unflatten(1, (size, width))
            into[alike].copy_(values[..., frames])

    def require_usable(self, scored: ScoredTrial, neurons: slice, values: Float32[Tensor, "k n t"]) -> None:
        """Name a prediction that cannot be scored.

        Raises:
            PredictionError: always; called when the sums are not finite.
        """
        bad = ~torch.isfinite(values)
        trial, session = scored.trial.index, self.plan.recording.session
        if bad.any():
            member, neuron, frame = torch.nonzero(bad)[0].tolist()
            value = float(values[member, neuron, frame])
            what, must = f"{value} at frame {scored.first + frame}", "be finite"
        else:
            member, neuron, frame = np.unravel_index(int(values.abs().argmax()), tuple(values.shape))
            value = float(values[member, neuron, frame])
            what, must = f"{value:.3g} at frame {scored.first + frame}", "be small enough to be squared"
        info = self.plan.files[member].info
        raise PredictionError(
            f"{info.member}: trial {trial} of {session}: the prediction of neuron "
            f"{neurons.start + neuron} is {what}, but must {must}; predict again or leave {info.member} out"
        )


class _PredictionFile:
    """A .npy file of predictions, read at given places."""

    def __init__(
        self, descriptor: int, dtype: np.dtype[Any], shape: tuple[int, ...], *, offset: int, window: int
    ) -> None:
        self.descriptor = descriptor
        self.dtype = dtype
        self.shape = shape
        self.offset = offset
        self.window = window

    @classmethod
    def open(cls, path: Path, values: np.ndarray, *, window: int) -> "_PredictionFile":
        assert isinstance(values, np.memmap)
        descriptor = os.open(path, os.O_RDONLY)
        return cls(descriptor, values.dtype, values.shape, offset=int(values.offset), window=window)

    def extent(self, row: int, neurons: slice) -> tuple[int, int]:
        """Return where the values of a row are in the file, and how many bytes they take."""
        line = self.shape[2] * self.dtype.itemsize
        start = self.offset + (row * self.shape[1] + neurons.start) * line
        return start, (neurons.stop - neurons.start) * line

    def read(self, row: int, neurons: slice, into: np.ndarray) -> None:
        start, length = self.extent(row, neurons)
        if os.preadv(self.descriptor, [into.data.cast("B")], start) != length:
            raise PredictionError("a file of predictions is too short; delete it and predict again")


def _runs(kinds: Sequence[object]) -> list[slice]:
    """Return the stretches of neighbors that are the same."""
    starts = [place for place in range(len(kinds)) if place == 0 or kinds[place] != kinds[place - 1]]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(kinds)], strict=True)]


def summarize_block(reader: SessionReader, neurons: slice) -> tuple[Float64[np.ndarray, "2 c values n"], int]:
    """Summarize some neurons of a session.

    Returns:
        Packed moments of single trials and of means over repeats, for each clip of the session; and how many
        pairs of neuron and frame are left out because the response is NaN.
    """
    plan, workspace = reader.plan, reader.workspace()
    reader.announce(neurons)
    size = neurons.stop - neurons.start
    packed = np.zeros((2, len(plan.clips), num_values(len(plan.files)), size))
    masked = 0
    for place, videos in enumerate(plan.clips.values()):
        responses = [[_read(reader, scored, neurons) for scored in repeats] for repeats in videos]
        masked += sum(int(np.isnan(values).sum()) for of_video in responses for values in of_video)
        for start in range(0, size, TILE):
            part = slice(start, min(start + TILE, size))
            tile = slice(neurons.start + part.start, neurons.start + part.stop)
            sums = (MomentSum(), MomentSum())
            for repeats, of_video in zip(videos, responses, strict=True):
                _add_video(reader, repeats, [values[part] for values in of_video], tile, sums, workspace)
            for metric, total in enumerate(sums):
                packed[metric, place, :, part] = total.packed()
    return packed, masked


def _read(reader: SessionReader, scored: ScoredTrial, neurons: slice) -> Float32[np.ndarray, "n t"]:
    return reader.responses.read(scored.trial, scored.first, scored.stop, neurons)


def _add_video(
    reader: SessionReader,
    repeats: Sequence[ScoredTrial],
    responses: Sequence[Float32[np.ndarray, "n _t"]],
    neurons: slice,
    sums: tuple[MomentSum, MomentSum],
    workspace: Workspace,
) -> None:
    """Add all repeats of a video to the sums of single trials and of means over repeats."""
    size, num_traces = neurons.stop - neurons.start, len(reader.plan.files) + 1
    first, stop = max(scored.first for scored in repeats), min(scored.stop for scored in repeats)
    average = _Average(num_traces, size, stop - first)
    incomplete = np.zeros(size, dtype=bool)
    for values in responses:
        incomplete |= np.isnan(values).any(axis=1)
    masked = _MaskedRepeats(torch.from_numpy(np.flatnonzero(incomplete))) if incomplete.any() else None
    for scored, response in zip(repeats, responses, strict=True):
        rows = workspace.traces(num_traces + 1, size, scored.stop - scored.first)
        rows[0] = 1.0
        rows[1] = torch.from_numpy(response)
        reader.read(scored, neurons, rows[2:], workspace)
        if masked is not None:
            masked.add(rows[1:], kept=slice(first - scored.first, stop - scored.first))
            rows[1].nan_to_num_(nan=0.0)
        traces = rows[1:]
        shift = traces.mean(dim=2)
        traces -= shift[..., None]
        moments = _moments(rows, shift.double())
        if not bool(torch.isfinite(moments[2].sum())):
            reader.read(scored, neurons, traces[1:], workspace)
            reader.require_usable(scored, neurons, traces[1:])
        if masked is not None:
            masked.replace_single(moments)
        sums[0].add(*moments)
        if len(repeats) > 1:
            average.add(traces[..., first - scored.first : stop - scored.first], shift)
    if len(repeats) > 1:
        moments = average.moments(len(repeats))
        if masked is not None:
            masked.replace_average(moments)
    sums[1].add(*moments)


_Moments = tuple[
    Float64[Tensor, " n"],
    Float64[Tensor, "n traces"],
    Float64[Tensor, "n traces traces"],
]


def _moments(rows: Float32[Tensor, "rows n t"], shift: Float64[Tensor, "traces n"]) -> _Moments:
    """Summarize a block of float32 rows ``[1, traces]`` from which ``shift`` was taken.

    The row of ones gives what is left of the means, so a shift that is not quite the mean does no harm.
    """
    gram = torch.bmm(rows.permute(1, 0, 2), rows.permute(1, 2, 0)).double()
    num_frames = rows.shape[2]
    rest = gram[:, 0, 1:]
    scatter = torch.baddbmm(gram[:, 1:, 1:], rest[:, :, None], rest[:, None], alpha=-1.0 / num_frames)
    count = torch.full((rows.shape[1],), float(num_frames), dtype=torch.float64)
    return count, shift.T + rest / num_frames, scatter


class _Average:
    """Mean over the repeats of a video, frame by frame."""

    def __init__(self, num_traces: int, num_neurons: int, num_frames: int) -> None:
        self._rows = torch.zeros(num_traces + 1, num_neurons, num_frames)
        self._shift = torch.zeros(num_traces, num_neurons, dtype=torch.float64)

    def add(self, traces: Float32[Tensor, "traces n t"], shift: Float32[Tensor, "traces n"]) -> None:
        self._rows[1:] += traces
        self._shift += shift

    def moments(self, num_repeats: int) -> _Moments:
        self._rows[1:] /= num_repeats
        self._rows[0] = 1.0
        return _moments(self._rows, self._shift / num_repeats)


class _MaskedRepeats:
    """Summarizes in float64 the neurons of a video whose responses are not complete.

    A frame without a response counts for no member; the mean over repeats is over those that have one.
    """

    def __init__(self, neurons: Tensor) -> None:
        self._neurons = neurons
        self._single: _Moments | None = None
        self._sum: Float64[Tensor, "traces m t"] | None = None
        self._counts: Float64[Tensor, "m t"] | None = None

    def add(self, traces: Float32[Tensor, "traces n t"], *, kept: slice) -> None:
        values = traces[:, self._neurons].double()
        valid = ~torch.isnan(values[0])
        values = torch.where(valid, values, 0.0)
        self._single = _masked_moments(values, valid)
        values, counts = values[..., kept], valid[:, kept].double()
        self._sum = values if self._sum is None else self._sum + values
        self._counts = counts if self._counts is None else self._counts + counts

    def replace_single(self, moments: _Moments) -> None:
        assert self._single is not None
        self._replace(moments, self._single)

    def replace_average(self, moments: _Moments) -> None:
        assert self._sum is not None
        assert self._counts is not None
        averages = self._sum / self._counts.clamp(min=1.0)
        self._replace(moments, _masked_moments(averages, self._counts > 0))

    def _replace(self, moments: _Moments, exact: _Moments) -> None:
        for target, source in zip(moments, exact, strict=True):
            target[self._neurons] = source


def _masked_moments(values: Float64[Tensor, "traces m t"], valid: Bool[Tensor, "m t"]) -> _Moments:
    count = valid.sum(dim=1).double()
    mean = torch.where(valid, values, 0.0).sum(dim=2) / count.clamp(min=1.0)
    above = torch.where(valid, values - mean[..., None], 0.0).permute(1, 0, 2)
    return count, mean.T.clone(), torch.bmm(above, above.mT)
