"""Write predictions trial by trial so that a crash loses at most one trial."""

import fcntl
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float

from data.array_files import HEADER_BYTES, npy_header
from training.checkpoint import sha256_of
from training.moments import CONSTANT_TOLERANCE
from training.prediction_info import PredictionError, PredictionInfo

FORMAT = 1
_HALF, _SINGLE = np.dtype("<f2"), np.dtype("<f4")
# Squared rounding error over variance, mean over neurons. Correlations change by about half of it.
_MAX_ROUNDING = 1e-5

logger = logging.getLogger(__name__)


def fits_float16(values: Float[np.ndarray, "n t"]) -> bool:
    """Tell whether half precision keeps the traces: nothing overflows and rounding is small beside changes.

    Values in units far from 1 fail: tiny ones are below the smallest normal number, large ones above the
    largest. Neurons that do not change do not count.
    """
    with np.errstate(over="ignore"):
        half = values.astype(np.float16).astype(np.float32)
    if not np.isfinite(half).all():
        return False
    values = values.astype(np.float64)
    variance, mean = values.var(axis=1), values.mean(axis=1)
    changes = variance > (CONSTANT_TOLERANCE * np.abs(mean)) ** 2
    if not changes.any():
        return bool(np.all(np.abs(half - values) <= 2.0**-11 * np.abs(values)))
    rounding = ((half - values) ** 2).mean(axis=1)
    return float((rounding[changes] / variance[changes]).mean()) <= _MAX_ROUNDING


class PredictionWriter:
    """Write one file of predictions; use as a context manager.

    Trials go to ``<name>.npy.partial`` in any order. Only when all of them are there, the file gets its name,
    and then its sidecar ``<name>.json``: predictions without a sidecar do not exist. A partial file of the
    same ``info`` is continued, any other is replaced. Values are kept in half precision until one trial does
    not fit.

    Args:
        path: the .npy file to be.
        info: what the predictions belong to.

    Raises:
        PredictionError: another process writes this file.
    """

    def __init__(self, path: Path, info: PredictionInfo) -> None:
        self.path, self.info = path, info
        self._partial = path.with_name(path.name + ".partial")
        self._journal = path.with_name(path.name + ".progress")
        self._wide = path.with_name(path.name + ".wide")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock = _lock(self._lock_path, path)
        self._wide.unlink(missing_ok=True)
        self._done = self._resume()
        if not self._done:
            self._create(_HALF)
        self._dtype = _read_dtype(self._partial)
        self._rewrite_journal()

    @property
    def missing(self) -> tuple[int, ...]:
        """The trials that are still to be written."""
        return tuple(trial for trial in self.info.trials if trial not in self._done)

    def write(self, trial: int, predicted: Float[np.ndarray, "n t"]) -> None:
        """Store one trial; it survives a crash when this returns.

        Args:
            trial: its index.
            predicted: exactly the frames that ``info.frames`` names for it, in ``info.units``.

        Raises:
            PredictionError: unknown trial, wrong shape, or a value that is not finite.
        """
        row, columns = self.info.columns(trial)
        self._check(trial, predicted, (self.info.num_neurons, columns.stop - columns.start))
        if self._dtype == _HALF and not fits_float16(predicted):
            logger.info("%s needs single precision from trial %d on", self.path, trial)
            self._widen()
        values = np.zeros(self.info.shape[1:], dtype=self._dtype)
        values[:, columns] = predicted
        with self._partial.open("r+b") as file:
            file.seek(HEADER_BYTES + row * values.nbytes)
            file.write(values.tobytes())
            _sync(file.fileno(), file)
        with self._journal.open("a") as journal:
            journal.write(f"{trial}\n")
            _sync(journal.fileno(), journal)
        self._done.add(trial)

    def finish(self) -> None:
        """Give the file its name and write its sidecar.

        Raises:
            PredictionError: trials are missing.
        """
        if self.missing:
            raise PredictionError(
                f"{self.path} misses {len(self.missing)} of {len(self.info.trials)} trials, first "
                f"{self.missing[0]}; write them, or run the same command again to continue"
            )
        sidecar = self.path.with_suffix(".json")
        plain = self.info.to_plain() | {
            "format": FORMAT,
            "dtype": self._dtype.name,
            "sha256": sha256_of(self._partial),
        }
        # The old sidecar goes first: at no time may one describe another's file.
        sidecar.unlink(missing_ok=True)
        self._partial.replace(self.path)
        _write_whole(sidecar, json.dumps(plain, indent=1) + "\n")
        self._journal.unlink()
        self._lock_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let other processes write the file; what was written stays for the next writer."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "PredictionWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._lock >= 0:
                self.finish()
        finally:
            self.close()

    def _check(self, trial: int, predicted: Float[np.ndarray, "n t"], shape: tuple[int, int]) -> None:
        where = f"{self.info.member}: trial {trial} of {self.info.session}"
        if predicted.shape != shape:
            raise PredictionError(
                f"{where} has {predicted.shape[0]} neurons and {predicted.shape[1]} frames, "
                f"but must have {shape[0]} and {shape[1]}"
            )
        finite = np.isfinite(predicted)
        if not finite.all():
            neuron, frame = np.argwhere(~finite)[0]
            raise PredictionError(
                f"{where}: the prediction of neuron {neuron} is {predicted[neuron, frame]}, "
                "but must be finite"
            )

    def _resume(self) -> set[int]:
        if self._journal.is_file() and self.path.is_file() and not self.path.with_suffix(".json").exists():
            # A crash came between naming the file and writing its sidecar.
            self.path.replace(self._partial)
        if not (self._journal.is_file() and self._partial.is_file()):
            return set()
        # A last line without its end was cut short by a crash.
        header, *lines = self._journal.read_text().split("\n")[:-1] or [""]
        try:
            if PredictionInfo.from_plain(json.loads(header)) == self.info and self._has_right_size():
                return {int(line) for line in lines} & set(self.info.trials)
        except (ValueError, KeyError, TypeError):
            pass
        logger.info("%s belongs to other predictions and is replaced", self._partial)
        return set()

    def _has_right_size(self) -> bool:
        itemsize = _read_dtype(self._partial).itemsize
        return self._partial.stat().st_size == HEADER_BYTES + int(np.prod(self.info.shape)) * itemsize

    def _create(self, dtype: np.dtype[Any]) -> None:
        with self._partial.open("wb") as file:
            file.write(npy_header(dtype, self.info.shape))
            file.truncate(HEADER_BYTES + int(np.prod(self.info.shape)) * dtype.itemsize)
            _sync(file.fileno(), file)

    def _rewrite_journal(self) -> None:
        lines = [json.dumps(self.info.to_plain()), *(str(trial) for trial in sorted(self._done))]
        _write_whole(self._journal, "\n".join(lines) + "\n")

    def _widen(self) -> None:
        """Turn the partial file into single precision, row by row."""
        narrow = np.load(self._partial, mmap_mode="r")
        with self._wide.open("wb") as file:
            file.write(npy_header(_SINGLE, self.info.shape))
            for row in narrow:
                file.write(row.astype(_SINGLE).tobytes())
            _sync(file.fileno(), file)
        self._wide.replace(self._partial)
        self._dtype = _SINGLE


def _lock(path: Path, wanted: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink == 0:
            raise OSError("removed by a writer that has just finished")
    except OSError:
        os.close(descriptor)
        raise PredictionError(
            f"{wanted} is being written by another process; wait for it or end it"
        ) from None
    return descriptor


def _read_dtype(path: Path) -> np.dtype[Any]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        dtype: np.dtype[Any] = np.lib.format.read_array_header_1_0(file)[2]
    return dtype


def _sync(descriptor: int, file: Any) -> None:
    file.flush()
    os.fsync(descriptor)


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        _sync(file.fileno(), file)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
