"""The truth behind a simulated recording: rates, receptive fields, video identities and withheld responses.

``DIR/truth/<session>/`` holds ``settings.json``, ``neurons.npz``, ``trials.parquet`` and, per trial,
``stimulus_rates/<i>.npy`` (n, s), ``modulators/<i>.npy`` (3, s) and for withheld trials ``answers/<i>.npy``
(n, t). Rates are events per 8 Hz sample; everything at 30 Hz follows from them exactly.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from data.calcium import expected_trace
from data.experiment import PlannedTrial
from data.population import Cells
from data.recording import RecordingError, Stimulus, Tier, Trial
from data.tuning import Presentation, Tuning, modulation_gain

Gain = Literal["none", "behavior", "all"]
"""What multiplies the rates: nothing, what cameras see (running and pupil), or also the hidden slow gain."""

FOLDER = "truth"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueTrial:
    """One trial, and where its start fell between two calcium samples (``phase``, 0..1)."""

    trial: Trial
    phase: float


class Truth:
    """Read the truth of one simulated session.

    Args:
        folder: ``DIR/truth/<session>``.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "settings.json").is_file():
            raise RecordingError(f"{folder} holds no truth: it must have been written by data/simulate.py")
        self.folder = folder
        self.session = folder.name
        self.settings: dict[str, object] = json.loads((folder / "settings.json").read_text())
        with np.load(folder / "neurons.npz", allow_pickle=False) as arrays:
            self.cells = Cells(**{field.name: arrays[field.name] for field in fields(Cells)})
            self.gain = float(arrays["gain"])
        rows = pq.read_table(folder / "trials.parquet").to_pylist()
        self.trials = {row["index"]: _read_trial(row) for row in rows}

    @classmethod
    def of(cls, recording: Path) -> "Truth":
        """Open the truth that belongs to a simulated mouse folder."""
        return cls(recording.parent / FOLDER / recording.name)

    def stimulus_rates(self, index: int) -> Float[np.ndarray, "n s"]:
        """Return the events per sample that the video alone (as the moving eye saw it) calls for."""
        return _load(self.folder / "stimulus_rates" / f"{index}.npy")

    def rates(self, index: int, *, gain: Gain = "all") -> Float[np.ndarray, "n s"]:
        """Return the events per sample, with the modulations that ``gain`` names."""
        rates = self.stimulus_rates(index)
        if gain == "none":
            return rates
        modulators = _load(self.folder / "modulators" / f"{index}.npy")
        if gain == "all":
            return np.asarray(rates * modulation_gain(self.cells, modulators))
        modulators[2] = 0.0
        # The mean of the hidden gain, which is log-normal.
        mean_hidden = np.exp(self.cells.modulation[:, 2:] ** 2 / 2)
        return np.asarray(rates * modulation_gain(self.cells, modulators) * mean_hidden)

    def expected_responses(self, index: int, *, gain: Gain = "all") -> Float[np.ndarray, "n t"]:
        """Return the mean response of every neuron and frame: no prediction correlates better.

        Args:
            index: the trial.
            gain: "behavior" is the best that a model of video and behavior can reach, "none" the best without
                behavior, "all" the best that anything can.
        """
        true = self.trials[index]
        return expected_trace(
            self.rates(index, gain=gain),
            scale=self.cells.scale,
            num_frames=true.trial.num_frames,
            phase=true.phase,
        )

    def answer(self, index: int) -> Float[np.ndarray, "n t"]:
        """Return the responses that the recording withholds."""
        if self.trials[index].trial.has_responses:
            raise ValueError(
                f"{self.session}: trial {index} is not withheld, so its responses are in the recording"
            )
        return _load(self.folder / "answers" / f"{index}.npy")


class TruthWriter:
    """Write the truth of one session; it gets its name when ``finish`` is called."""

    def __init__(self, folder: Path, *, cells: Cells, tuning: Tuning) -> None:
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._rows: list[dict[str, object]] = []
        for old in (self._partial, self._folder):
            if old.exists():
                shutil.rmtree(old)
        for name in ("stimulus_rates", "modulators", "answers"):
            (self._partial / name).mkdir(parents=True)
        arrays = {field.name: getattr(part, field.name) for part in (cells, tuning) for field in fields(part)}
        np.savez(self._partial / "neurons.npz", allow_pickle=False, **arrays)

    def write_trial(
        self,
        trial: PlannedTrial,
        shown: Presentation,
        *,
        stimulus_rates: Float[np.ndarray, "n s"],
        answer: Float[np.ndarray, "n t"],
    ) -> None:
        """Store the rates of a trial, and its responses if the recording withholds them."""
        arrays = {"stimulus_rates": stimulus_rates, "modulators": shown.modulators}
        if trial.withheld:
            arrays["answers"] = answer
        for name, array in arrays.items():
            np.save(self._partial / name / f"{trial.index}.npy", array.astype(np.float32), allow_pickle=False)
        self._rows.append(
            {
                "index": trial.index,
                "tier": str(trial.tier),
                "video_id": trial.video.video_id,
                "stimulus": str(trial.video.stimulus),
                "num_frames": trial.num_frames,
                "behavior_frames": trial.behavior_frames,
                "phase": shown.phase,
                "withheld": trial.withheld,
                "cuts": list(trial.times[1:-1]),
            }
        )

    def finish(self, settings: Mapping[str, object]) -> None:
        """Write the trial table and the settings, and give the folder its name."""
        pq.write_table(pa.Table.from_pylist(self._rows), self._partial / "trials.parquet")
        (self._partial / "settings.json").write_text(json.dumps(settings, indent=2))
        self._partial.rename(self._folder)


def _read_trial(row: Mapping[str, object]) -> TrueTrial:
    trial = Trial(
        index=int(str(row["index"])),
        tier=Tier(str(row["tier"])),
        num_frames=int(str(row["num_frames"])),
        video_id=str(row["video_id"]),
        stimulus=Stimulus(str(row["stimulus"])),
        has_responses=not row["withheld"],
    )
    return TrueTrial(trial=trial, phase=float(str(row["phase"])))


def _load(path: Path) -> Float[np.ndarray, "..."]:
    array: Float[np.ndarray, "..."] = np.load(path, allow_pickle=False)
    return array
