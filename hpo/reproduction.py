"""One run of a study made again, exactly: same values, seed and recordings, on as many processes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from data.recording import Recording
from data.sources import open_recordings
from hpo.cluster import ClusterConfig
from hpo.driver import Objective
from hpo.identity import IDENTITY_FILE, StudyError
from hpo.lanes import Lane
from hpo.memory import too_many_clips
from hpo.objective import make_objective
from hpo.study import is_infeasible, made_with, outcome_of, read_trials, run_folder
from training.material import SelectOn
from training.results import EpochReport, Outcome, RunResult
from training.run import versions
from training.run_folder import read_json
from training.spec import RunSpec, from_plain

TOLERANCE = 1e-6
"""Scores that differ by less are the same; the same versions on the same kind of machine give equal ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """A run that is to be made again.

    Attributes:
        number: of the run.
        spec: what was run.
        outcome: how it ended.
        curve: its score by epoch.
        recordings: what it was trained on.
        select_on: what its scores looked at.
        workers: processes it was trained on.
        threads: of each.
        gpus: of each.
        then: versions it was made with.
        now: versions it would be made with.
        notes: what may make the numbers differ.
    """

    number: int
    spec: RunSpec
    outcome: str
    curve: Mapping[int, float]
    recordings: Sequence[Recording]
    select_on: SelectOn
    workers: int
    threads: int
    gpus: float
    then: Mapping[str, str]
    now: Mapping[str, str]
    notes: tuple[str, ...]


def describe_environment(cluster: ClusterConfig, recordings: Sequence[Recording]) -> dict[str, Any]:
    """Return what besides its values decides the numbers of a run, as plain values."""
    return {
        "versions": versions(),
        "workers": cluster.workers_per_run,
        "threads": int(cluster.cpus_per_worker),
        "gpus": cluster.gpus_per_worker,
        "store": str(recordings[0].store.resolve()),
    }


def find_run(folder: Path, number: int, *, sources: Sequence[Path] | None, cache: Path) -> Reproduction:
    """Return a run of a study, ready to be made again.

    Args:
        folder: of the study.
        number: of the run.
        sources: its recordings; None looks where they were.
        cache: for converted recordings.

    Raises:
        StudyError: there is no such study or run, the run was infeasible, or the recordings are others.
        OSError: the recordings are not there.
    """
    trials = read_trials(folder)
    if not 0 <= number < len(trials):
        raise StudyError(f"run is {number}, but study {folder.name} has runs 0 to {len(trials) - 1}")
    trial = trials[number]
    if is_infeasible(trial) and not trial.intermediate_values:
        reason = trial.user_attrs.get("reason", "it was infeasible")
        raise StudyError(f"run {number} cannot be made: {reason}")
    made, identity = made_with(trial), read_json(folder / IDENTITY_FILE)
    recordings = open_recordings(sources or [Path(made["store"])], cache=cache)
    _require_recordings(recordings, identity["recordings"])
    then, now = made["versions"], versions()
    return Reproduction(
        number=number,
        spec=from_plain(made["spec"]),
        outcome=outcome_of(trial),
        curve=dict(trial.intermediate_values),
        recordings=recordings,
        select_on=identity["select_on"],
        workers=made["workers"],
        threads=made["threads"],
        gpus=made["gpus"],
        then=then,
        now=now,
        notes=_notes(trial, folder, then=then, now=now),
    )


def _require_recordings(recordings: Sequence[Recording], wanted: Mapping[str, str]) -> None:
    found = {recording.session: recording.fingerprint for recording in recordings}
    if found != dict(wanted):
        raise StudyError(
            f"recordings are {', '.join(found)} of {recordings[0].store}, but the study was made on others "
            f"({', '.join(wanted)}), or these have changed: give them with --recordings"
        )


def _notes(
    trial: FrozenTrial, folder: Path, *, then: Mapping[str, str], now: Mapping[str, str]
) -> tuple[str, ...]:
    notes = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
    if "dirty" in str(then.get("commit")):
        notes.append("the code had changes that no commit holds")
    if too_many_clips(run_folder(folder, trial.number)) is not None:
        notes.append("it had too little memory and went on in smaller parts, which rounds differently")
    return tuple(notes)


def make_again(found: Reproduction, folder: Path, *, on_epoch: Any = lambda _: None) -> RunResult:
    """Make the run in a new folder, up to the epoch that it came to.

    Args:
        found: the run.
        folder: for checkpoints; what it holds is gone on with.
        on_epoch: called with every ``EpochReport``.
    """
    lane: Lane = "actors" if found.workers == 1 else "train"
    cluster = ClusterConfig(
        lane=lane,
        workers_per_run=found.workers,
        cpus_per_worker=found.threads,
        gpus_per_worker=found.gpus,
    )
    objective: Objective = make_objective(cluster, found.recordings, select_on=found.select_on)
    epochs = max(found.curve, default=found.spec.epochs)

    def goes_on(report: EpochReport) -> bool:
        on_epoch(report)
        return report.epoch < epochs

    result = objective(found.spec, folder, goes_on)
    # It was stopped here where it had ended, not before.
    whole = epochs >= found.spec.epochs and result.outcome is Outcome.PRUNED and result.error is None
    return replace(result, outcome=Outcome.FINISHED) if whole else result


def largest_difference(curve: Mapping[int, float], again: Mapping[int, float]) -> float:
    """Return by how much the scores of two curves differ at most; infinite where one has no score."""
    if curve.keys() != again.keys():
        return math.inf
    pairs = [(curve[epoch], again[epoch]) for epoch in curve]
    return max((0.0 if str(a) == str(b) else abs(a - b) for a, b in pairs), default=0.0)
