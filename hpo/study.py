"""A study: what was asked, reported and told, in one Optuna storage that only the driver writes.

The storage is the whole state of a search. A study that was interrupted at any moment is opened again:
finished runs stay, runs in flight go on under their number with the same hyperparameters, and an epoch that
was reported before is not reported again.
"""

import fcntl
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from hpo.space import Bounds, SearchSpace
from training.results import EpochReport, Outcome, RunResult
from training.spec import RunSpec

PRUNERS = ("hyperband", "median", "asha", "none")


class StudyError(ValueError):
    """A study that cannot be used; the message says what differs and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningConfig:
    """When runs that do badly are stopped.

    Attributes:
        pruner: Hyperband (brackets of successive halving), median of the others, ASHA (one bracket), or none.
        min_epochs: no run is stopped before it has trained so many.
        max_epochs: epochs of a run that is never stopped.
        reduction: one of so many runs survives a rung.
    """

    pruner: str = "hyperband"
    min_epochs: int = 1
    max_epochs: int = 9
    reduction: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be pruned by."""
        if self.pruner not in PRUNERS:
            raise ValueError(f"pruner is {self.pruner!r}, but must be one of {', '.join(PRUNERS)}")
        if not 1 <= self.min_epochs <= self.max_epochs:
            raise ValueError(
                f"min_epochs is {self.min_epochs}, but must be from 1 to max_epochs, {self.max_epochs}"
            )
        if self.reduction < 2:
            raise ValueError(f"reduction is {self.reduction}, but must be at least 2")

    def build(self) -> BasePruner:
        """Return Optuna's pruner."""
        if self.pruner == "hyperband":
            return HyperbandPruner(
                min_resource=self.min_epochs, max_resource=self.max_epochs, reduction_factor=self.reduction
            )
        if self.pruner == "asha":
            return SuccessiveHalvingPruner(min_resource=self.min_epochs, reduction_factor=self.reduction)
        if self.pruner == "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=self.min_epochs)
        return NopPruner()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A run that is to be made.

    Attributes:
        number: of the run; names its folder.
        spec: what to run; None where the values cannot work together.
        reason: why they cannot.
    """

    number: int
    spec: RunSpec | None
    reason: str | None = None


class Study:
    """One search.

    Args:
        folder: holds the storage, the lock and what the study was made for.
        space: what is searched.
        bounds: what the user has fixed.
        pruning: when runs are stopped.
        seed: of the sampler; the proposal for run k is a function of it, k and the results so far.
        identity: what results depend on besides the space (recordings, selection); must be the same when the
            study is opened again.

    Raises:
        StudyError: another process is driving the study, or it was made for something else.
    """

    def __init__(
        self,
        folder: Path,
        space: SearchSpace,
        *,
        bounds: Bounds,
        pruning: PruningConfig,
        seed: int,
        identity: Mapping[str, Any],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.space, self.bounds, self.seed = folder, space, bounds, seed
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise StudyError(
                f"study {folder} is being driven by another process; wait for it, or use --name"
            ) from None
        self._require_same(identity)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._pruner = pruning.build()
        self._study = optuna.create_study(
            storage=f"sqlite:///{folder.resolve() / 'study.db'}",
            study_name=folder.name,
            direction="maximize",
            pruner=self._pruner,
            load_if_exists=True,
        )
        self._live: dict[int, optuna.Trial] = {}
        self._orphans = [trial.number for trial in self._study.get_trials(states=(TrialState.RUNNING,))]

    def close(self) -> None:
        """Let another process drive the study."""
        self._lock.close()

    def _require_same(self, identity: Mapping[str, Any]) -> None:
        path = self.folder / "identity.json"
        wanted = json.loads(json.dumps(identity))
        if not path.exists():
            path.write_text(json.dumps(wanted, indent=2))
            return
        found = json.loads(path.read_text())
        different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if different:
            self._lock.close()
            raise StudyError(
                f"study {self.folder} was made with another {', '.join(different)}: "
                "use --fresh to archive it, or --name for a new one"
            )

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """Make known values the next run to be asked for, once in the life of the study."""
        if not self._study.get_trials():
            self._study.enqueue_trial(dict(values))

    def ask(self, *, total: int) -> Asked | None:
        """Return the next run: first those that a dead driver left, then new ones, None after ``total``."""
        if self._orphans:
            number = self._orphans.pop(0)
            trial = optuna.Trial(self._study, self.trial(number)._trial_id)
        elif self._counted() < total:
            self._require_feasible(total)
            number = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = TPESampler(seed=_ask_seed(self.seed, number), n_startup_trials=8)
            trial = self._study.ask()
            number = trial.number
        else:
            return None
        self._live[number] = trial
        try:
            return Asked(number=number, spec=self.space.spec(trial, self.bounds))
        except ValueError as error:
            return Asked(number=number, spec=None, reason=str(error))

    def _require_feasible(self, total: int) -> None:
        infeasible = sum(is_infeasible(trial) for trial in self._study.get_trials(deepcopy=False))
        if infeasible > max(100, 10 * total):
            raise StudyError(f"{infeasible} points of study {self.folder} cannot be run: pin or narrow less")

    def _counted(self) -> int:
        # An infeasible point takes nobody's place.
        trials = self._study.get_trials(deepcopy=False)
        return sum(trial.state.is_finished() and not is_infeasible(trial) for trial in trials) + len(
            self._live
        )

    def report(self, number: int, report: EpochReport) -> bool:
        """Store an epoch's score, unless it is stored already, and answer whether to go on."""
        trial = self._live[number]
        if report.epoch not in self.trial(number).intermediate_values:
            trial.report(report.score, report.epoch)
        return not self._pruner.prune(self._study, self.trial(number))

    def tell(self, number: int, result: RunResult) -> None:
        """Store how a run ended; a partial or missing score never counts as a finished one."""
        trial = self._live.pop(number)
        trial.set_user_attr("outcome", str(result.outcome))
        trial.set_user_attr("seconds", result.seconds)
        if result.error is not None:
            trial.set_user_attr("reason", result.error)
        if result.outcome is Outcome.FINISHED and result.score is not None and math.isfinite(result.score):
            self._study.tell(trial, result.score)
        elif result.outcome is Outcome.PRUNED:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif result.outcome is Outcome.INFEASIBLE:
            trial.set_constraint("infeasible", 1.0)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def trial(self, number: int) -> FrozenTrial:
        """Return what is stored of a run."""
        return self._study.get_trials(deepcopy=False)[number]

    def trials(self) -> list[FrozenTrial]:
        """Return what is stored of all runs, by number."""
        return self._study.get_trials(deepcopy=True)

    def best(self) -> FrozenTrial | None:
        """Return the finished run of the highest score."""
        finished = [trial for trial in self.trials() if trial.state is TrialState.COMPLETE]
        return max(finished, key=lambda trial: trial.values[0], default=None)


def is_infeasible(trial: FrozenTrial) -> bool:
    """Return whether a run was told to be impossible instead of bad."""
    return trial.user_attrs.get("outcome") == str(Outcome.INFEASIBLE)


def _ask_seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
