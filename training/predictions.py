"""The prediction store: ``[trial, neuron, frame]`` of each member, session and tier."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from data.confined import parse_json, read_small
from training.checkpoint import sha256_of
from training.names import nearest
from training.prediction_info import PredictionError, PredictionInfo
from training.prediction_writer import FORMAT, PredictionWriter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """One file of predictions, mapped into memory.

    Attributes:
        path: the .npy file.
        info: what they belong to; ``info.mask`` says which frames are predicted.
        values: by row, neuron and column; column 0 is frame ``info.window[0]``.
        sha256: hash of the file when it was written.
    """

    path: Path
    info: PredictionInfo
    values: Float[np.ndarray, "trial n frame"]
    sha256: str

    def trial(self, index: int) -> Float32[np.ndarray, "n frames"]:
        """Return the predicted frames of one trial (``info.frames`` says which).

        Raises:
            PredictionError: the trial is not in the file.
        """
        row, columns = self.info.columns(index)
        return self.values[row, :, columns].astype(np.float32)

    def verify(self) -> None:
        """Read the whole file and compare its hash.

        Raises:
            PredictionError: it was changed.
        """
        found = sha256_of(self.path)
        if found != self.sha256:
            raise PredictionError(
                f"sha256 of {self.path} is {found[:12]}..., but must be {self.sha256[:12]}...: "
                "the file was changed; delete it and predict again"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionStore:
    """Folders ``member/session/tier.npy`` with a sidecar ``tier.json`` each.

    Attributes:
        root: folder of the store.
    """

    root: Path

    def path(self, member: str, session: str, tier: str) -> Path:
        """Return the file of some predictions, whether it exists or not."""
        return self.root / member / session / f"{tier}.npy"

    def writer(self, info: PredictionInfo) -> PredictionWriter:
        """Start or continue a file of predictions."""
        return PredictionWriter(self.path(info.member, info.session, info.tier), info)

    def has(self, info: PredictionInfo) -> bool:
        """Tell whether exactly these predictions are complete."""
        try:
            return self.open(info.member, info.session, info.tier).info == info
        except PredictionError:
            return False

    def open(self, member: str, session: str, tier: str) -> Predictions:
        """Map a complete file of predictions.

        Raises:
            PredictionError: it does not exist, is not complete, or does not fit its sidecar.
        """
        path = self.path(member, session, tier)
        sidecar = path.with_suffix(".json")
        if not sidecar.is_file():
            known = [f"{info.member}/{info.session}/{info.tier}" for info in self.infos()]
            wanted = f"{member}/{session}/{tier}"
            raise PredictionError(f"predictions are {wanted}{nearest(wanted, known)} in {self.root}")
        info, plain = _read_sidecar(sidecar)
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PredictionError(
                f"{path} cannot be read ({error}); delete {sidecar} and predict again"
            ) from error
        if values.shape != info.shape or values.dtype.name != plain["dtype"]:
            raise PredictionError(
                f"{path} holds {values.dtype.name} {values.shape}, but must hold {plain['dtype']} "
                f"{info.shape} as its sidecar says; delete both and predict again"
            )
        return Predictions(path=path, info=info, values=values, sha256=plain["sha256"])

    def infos(self) -> Iterator[PredictionInfo]:
        """Return what is complete in the store, sorted by member, session and tier."""
        for sidecar in sorted(self.root.glob("*/*/*.json")):
            yield _read_sidecar(sidecar)[0]


def _read_sidecar(path: Path) -> tuple[PredictionInfo, dict[str, Any]]:
    try:
        plain: dict[str, Any] = parse_json(read_small(path))
        if plain["format"] != FORMAT:
            raise PredictionError(
                f"{path} has format {plain['format']}, but this version reads {FORMAT}; predict again"
            )
        return PredictionInfo.from_plain(plain), plain
    except PredictionError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise PredictionError(f"{path} is not a sidecar of predictions ({error!r}); delete it") from error
