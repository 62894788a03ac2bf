"""What a report knows of a study, read from its folder without touching it, also while it is driven."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from jaxtyping import Float
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from hpo.ceiling import kept_ceiling
from hpo.confirmation import Confirmed, confirmation_folder, confirmed
from hpo.identity import IDENTITY_FILE, StudyError
from hpo.pruning import PruningConfig
from hpo.study import is_infeasible, outcome_of, storage_url
from training.names import flatten, with_values
from training.recipes import recipe
from training.results import Outcome
from training.run_folder import read_json
from training.spec import RunSpec, from_plain

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run of a study.

    Attributes:
        number: of the run.
        outcome: finished, pruned, failed, infeasible or running.
        score: final score; None unless the run has finished.
        curve: score by epoch.
        seconds: of training; None where nobody said.
        reason: why it ended as it did, in words.
        params: what was asked for, by dotted name.
        trial: as stored.
    """

    number: int
    outcome: str
    score: float | None
    curve: Mapping[int, float]
    seconds: float | None
    reason: str | None
    params: Mapping[str, Any]
    trial: FrozenTrial

    @property
    def last_score(self) -> float | None:
        """The final score, or that of the last epoch with a finite one; never that of an infeasible run."""
        if self.score is not None:
            return self.score
        finite = [score for _, score in sorted(self.curve.items()) if math.isfinite(score)]
        return finite[-1] if finite and self.outcome != Outcome.INFEASIBLE else None


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study as its folder tells it.

    Attributes:
        folder: of the study.
        name: of the space.
        runs: that were started, by number.
        identity: what the study was made for.
        published: number of the run with the published values, if there is one.
        ceiling: of the scores, by the noise of the recordings; None where nobody has computed it.
        confirmed: what further seeds say about the best runs.
    """

    folder: Path
    name: str
    runs: tuple[RunRecord, ...]
    identity: Mapping[str, Any] = field(default_factory=dict)
    published: int | None = None
    ceiling: float | None = None
    confirmed: tuple[Confirmed, ...] = ()

    @cached_property
    def finished(self) -> tuple[RunRecord, ...]:
        """Finished runs, the highest score first."""
        return tuple(
            sorted((run for run in self.runs if run.score is not None), key=lambda run: -(run.score or 0.0))
        )

    @property
    def best(self) -> RunRecord | None:
        """The finished run of the highest score."""
        return self.finished[0] if self.finished else None

    @cached_property
    def scored(self) -> tuple[RunRecord, ...]:
        """Runs with any score, by number."""
        return tuple(run for run in self.runs if run.last_score is not None)

    @property
    def trials(self) -> list[FrozenTrial]:
        """The runs as stored."""
        return [run.trial for run in self.runs]

    @cached_property
    def pruning(self) -> PruningConfig | None:
        """When runs were stopped; None where the folder does not say."""
        found = self.identity.get("pruning")
        return None if found is None else PruningConfig(**found)

    @cached_property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which runs were compared with each other, before the last."""
        if self.pruning is None:
            return ()
        return tuple(sorted({rung for bracket in self.pruning.rungs for rung in bracket}))

    @property
    def max_epochs(self) -> int:
        """Epochs of a run that is not stopped."""
        if self.pruning is not None:
            return self.pruning.max_epochs
        return max((max(run.curve, default=0) for run in self.runs), default=0)

    def spec(self, run: RunRecord) -> RunSpec | None:
        """Return the exact settings of a run; None where the folder does not say what lies around them."""
        if "base" not in self.identity:
            return None
        base = from_plain(self.identity["base"])
        known = flatten(base)
        pinned = {name: value for name, value in self.identity.get("pinned", {}).items() if name in known}
        return with_values(base, pinned | dict(run.params))

    def settings(self, run: RunRecord) -> dict[str, str]:
        """Return in what a run differs from its family's recipe, by dotted name, as ``--set`` takes it."""
        spec = self.spec(run)
        if spec is None:
            return {}
        start = flatten(recipe(spec.family, scale=self.scale))
        return {
            name: _as_text(value)
            for name, value in flatten(spec).items()
            if name in start and value != start[name] and name != "seed"
        }

    @property
    def scale(self) -> Any:
        """Full or demo."""
        return self.identity.get("space", {}).get("scale", "full")


def read_study(folder: Path) -> StudyRecord:
    """Read a study, also while a driver writes it.

    Raises:
        StudyError: there is no study in the folder.
    """
    database = Path(storage_url(folder).removeprefix("sqlite:///"))
    if not database.exists():
        raise StudyError(f"{folder} has no {database.name}, but must be the folder of a study")
    identity = folder / IDENTITY_FILE
    name, trials = _stored(storage_url(folder))
    started = [trial for trial in trials if trial.state is not TrialState.WAITING]
    published = next((trial.number for trial in trials if "fixed_params" in trial.system_attrs), None)
    return StudyRecord(
        folder=folder,
        name=name,
        runs=tuple(map(_record, started)),
        identity=read_json(identity) if identity.exists() else {},
        published=published,
        ceiling=kept_ceiling(folder),
        confirmed=_confirmed(folder, trials),
    )


def _confirmed(folder: Path, trials: Sequence[FrozenTrial]) -> tuple[Confirmed, ...]:
    again = confirmation_folder(folder)
    if not Path(storage_url(again).removeprefix("sqlite:///")).exists():
        return ()
    try:
        return tuple(confirmed(trials, _stored(storage_url(again))[1]))
    except StudyError:
        # It has hardly begun.
        return ()


def _stored(url: str) -> tuple[str, list[FrozenTrial]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": _PATIENCE_SECONDS}},
        # Tables are there; a report creates nothing.
        skip_table_creation=True,
    )
    try:
        if not storage.get_all_studies():
            raise StudyError(f"{url} holds no study yet: the search has hardly begun, try again")
        study = optuna.load_study(study_name=None, storage=storage)
        return study.study_name, study.get_trials(deepcopy=False)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _record(trial: FrozenTrial) -> RunRecord:
    finished = trial.state is TrialState.COMPLETE and not is_infeasible(trial)
    score = trial.values[0] if finished and math.isfinite(trial.values[0]) else None
    return RunRecord(
        number=trial.number,
        outcome=_outcome(trial),
        score=score,
        curve=dict(sorted(trial.intermediate_values.items())),
        seconds=trial.user_attrs.get("seconds"),
        reason=trial.user_attrs.get("reason"),
        params=trial.params,
        trial=trial,
    )


def _outcome(trial: FrozenTrial) -> str:
    # Optuna's word for a run whose outcome nobody wrote down.
    words = {"complete": str(Outcome.FINISHED), "fail": str(Outcome.FAILED)}
    found = outcome_of(trial)
    return words.get(found, found)


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "()"
    return f"{value!r}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class RungRank:
    """How well an early epoch tells the order at the end.

    Attributes:
        epoch: of the early score.
        correlation: Spearman's, between early and final score; None with fewer than three runs.
        runs: finished runs that it is computed from. Runs that were stopped have no final score, so the
            correlation is among those that were let through.
    """

    epoch: int
    correlation: float | None
    runs: int


def rung_ranks(study: StudyRecord) -> list[RungRank]:
    """Return for every rung how its scores rank the finished runs; without rungs for a few early epochs."""
    last = study.max_epochs
    epochs = [rung for rung in study.rungs if rung < last] or sorted({max(last // 9, 1), max(last // 3, 1)})
    if len(epochs) > 6:
        # The median rule compares at every epoch.
        epochs = [epochs[round(place * (len(epochs) - 1) / 5)] for place in range(6)]
    return [_rung_rank(epoch, study.finished) for epoch in epochs]


def _rung_rank(epoch: int, runs: Sequence[RunRecord]) -> RungRank:
    pairs = [(run.curve[epoch], run.score) for run in runs if math.isfinite(run.curve.get(epoch, math.nan))]
    early, final = zip(*pairs, strict=True) if pairs else ((), ())
    if len(pairs) < 3 or len(set(early)) == 1 or len(set(final)) == 1:
        return RungRank(epoch=epoch, correlation=None, runs=len(pairs))
    return RungRank(epoch=epoch, correlation=float(spearmanr(early, final).statistic), runs=len(pairs))


def last_scores(runs: Sequence[RunRecord]) -> Float[np.ndarray, " runs"]:
    """Return the last score of every run; NaN without any."""
    return np.array([run.last_score for run in runs], dtype=np.float64)


def training_seconds(runs: Sequence[RunRecord]) -> Float[np.ndarray, " runs"]:
    """Return how long every run was trained; NaN where nobody said."""
    return np.array([run.seconds for run in runs], dtype=np.float64)


def cheapest_best(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs that no other beats in score without costing more, the cheapest first."""
    front: list[RunRecord] = []
    costed = [run for run in runs if run.score is not None and run.seconds is not None]
    for run in sorted(costed, key=lambda run: (run.seconds or 0.0, -(run.score or 0.0))):
        if not front or (run.score or 0.0) > (front[-1].score or 0.0):
            front.append(run)
    return front
