"""The noise ceiling that a study's scores are seen beside; computed once and kept in the study's folder."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.recording import Recording, Tier
from training.ceiling import Ceiling, CeilingAccumulator, summarize
from training.run_folder import read_json, write_json

CEILING_FILE = "ceiling.json"
_KEY = "single_trial_max"

MEANING = (
    "the best single-trial correlation of a predictor of the video alone, on the oracle tier, where videos "
    "repeat; one that sees behavior can exceed it"
)


def noise_ceiling(recordings: Sequence[Recording]) -> float | None:
    """Return the pooled ceiling of the single-trial correlation, None without repeated videos."""
    ceilings = [ceiling for recording in recordings if (ceiling := _ceiling(recording)) is not None]
    return summarize(ceilings).single_trial_max if ceilings else None


def keep_ceiling(folder: Path, recordings: Sequence[Recording]) -> None:
    """Compute a study's ceiling and keep it in its folder, unless it is there."""
    if not (folder / CEILING_FILE).exists():
        write_json(folder / CEILING_FILE, {_KEY: noise_ceiling(recordings)})


def kept_ceiling(folder: Path) -> float | None:
    """Return the ceiling that a study's folder holds, None where there is none."""
    path = folder / CEILING_FILE
    found = read_json(path)[_KEY] if path.exists() else None
    return None if found is None else float(found)


def _ceiling(recording: Recording) -> Ceiling | None:
    repeats = defaultdict(list)
    for trial in recording.trials:
        if trial.tier is Tier.ORACLE and trial.has_responses:
            repeats[trial.video_id].append(trial)
    repeated = {video: same for video, same in repeats.items() if len(same) > 1}
    if not repeated:
        return None
    accumulator = CeilingAccumulator(recording.session, len(recording.neurons.ids))
    for video, same in repeated.items():
        shown = [recording.responses(trial) for trial in same]
        accumulator.update(
            [responses.astype(np.float64) for responses in shown if responses is not None], video_id=video
        )
    return accumulator.result()
