"""What share of the noise ceiling an ensemble reaches on the trials that score it."""

from collections.abc import Sequence

import numpy as np

from data.recording import Recording, Trial
from ensembles.analysis import CeilingShare, SystemScore
from ensembles.evidence import Evidence
from ensembles.official_responses import OfficialResponses
from training.ceiling import Ceiling, CeilingAccumulator
from training.scored_frames import LAST_FRAME, ScoreError


def share_of_ceiling(
    evidence: Evidence, recordings: Sequence[Recording], chosen: SystemScore
) -> tuple[CeilingShare | None, str]:
    """Return the chosen blend's share of the noise ceilings, or why there is none, in words."""
    if not recordings:
        return None, "not measured"
    try:
        ceilings = measure_ceilings(evidence, recordings)
    except ScoreError as error:
        return None, str(error)
    single = float(np.concatenate([ceiling.single_trial_max for ceiling in ceilings]).mean())
    average = float(np.concatenate([ceiling.cc_max for ceiling in ceilings]).mean())
    if single <= 0 or average <= 0:
        return None, "no neuron has a measurable signal"
    share = CeilingShare(
        single_trial=single,
        to_average=average,
        share_single_trial=chosen.overall["single_trial"].value / single,
        share_to_average=chosen.overall["to_average"].value / average,
    )
    return share, ""


def measure_ceilings(evidence: Evidence, recordings: Sequence[Recording]) -> list[Ceiling]:
    """Estimate the noise ceilings of the scored trials of each session from repeats.

    Raises:
        ScoreError: no video is repeated, or responses are missing or not complete.
    """
    ceilings = []
    for recording in recordings:
        wanted = set(evidence.trials_of[recording.session])
        repeats: dict[str, list[Trial]] = {}
        for trial in recording.trials:
            if trial.index in wanted:
                repeats.setdefault(trial.video_id, []).append(trial)
        responses = OfficialResponses(recording)
        neurons = slice(0, len(recording.neurons.ids))
        accumulator = CeilingAccumulator(recording.session, neurons.stop)
        for video_id, trials in sorted(repeats.items()):
            if len(trials) < 2:
                continue
            stops = [min(trial.num_frames, LAST_FRAME) for trial in trials]
            accumulator.update(
                [responses.read(trial, 0, stop, neurons) for trial, stop in zip(trials, stops, strict=True)],
                video_id=video_id,
            )
        ceilings.append(accumulator.result())
    return ceilings
