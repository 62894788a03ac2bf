"""A study: what was asked, reported and told, in one Optuna storage that only the driver writes.

The storage is the whole state of a search. A study that was interrupted at any moment is opened again:
finished runs stay, runs in flight go on under their number with the same hyperparameters, and an epoch that
was reported before is not reported again.
"""

import fcntl
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.identity import DATABASE_FILE, StudyError, require_same
from hpo.pruning import PruningConfig, undecided
from hpo.sampler import SeededSampler
from hpo.space import Bounds, Suggestions
from hpo.storage import OneWriterStorage
from training.names import nearest
from training.results import EpochReport, Outcome, RunResult
from training.spec import RunSpec, to_plain

_STOPPED, _MADE_WITH = "stopped_at", "made_with"
_SYNC_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A run that is to be made.

    Attributes:
        number: of the run; names its folder.
        spec: what to run; None where the values cannot work together.
        values: what was asked for, by dotted name.
        resumed: it was begun by a driver that ended before the run did.
        reason: why the values cannot work.
    """

    number: int
    spec: RunSpec | None
    values: Mapping[str, Any]
    resumed: bool = False
    reason: str | None = None


class Space(Protocol):
    """What runs are taken from: a ``SearchSpace``, or the runs of another study with other seeds."""

    @property
    def name(self) -> str:
        """The model family."""

    @property
    def base(self) -> RunSpec:
        """The run that others differ from."""

    def spec(self, optuna_trial: Suggestions, bounds: Bounds | None = None) -> RunSpec:
        """Return the run that a trial describes."""


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
        sampler: ``tpe`` or ``random``.
        made_with: versions and whatever else a run is made with; stored with every new run.

    Raises:
        StudyError: another process is driving the study, or it was made for something else.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        *,
        bounds: Bounds,
        pruning: PruningConfig,
        seed: int,
        identity: Mapping[str, Any],
        sampler: str = "tpe",
        made_with: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.space, self.bounds, self.pruning = folder, space, bounds, pruning
        self.made_with = dict(made_with or {})
        self._lock = lock_study(folder)
        self._pruner = pruning.build()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            require_same(folder, identity)
            self._storage = OneWriterStorage(storage_url(folder))
            # Hyperband's brackets are a hash of this name: not of the folder's, so that the same seed in
            # another folder searches the same way.
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=space.name,
                sampler=SeededSampler(seed, kind=sampler),
                pruner=self._pruner,
                direction="maximize",
                load_if_exists=True,
            )
            self._storage.sync()
        except StudyError:
            self._lock.close()
            raise
        self._live: dict[int, optuna.Trial] = {}
        self._curves: dict[int, dict[int, float]] = {}
        self._undecided: set[int] = set()
        self._orphans = [trial.number for trial in self._study.get_trials(states=(TrialState.RUNNING,))]
        self._num_runs = sum(
            trial.state.is_finished() and not is_infeasible(trial) for trial in self.trials()
        )

    def close(self) -> None:
        """Let another process drive the study."""
        self._storage.dispose()
        self._lock.close()

    def sync(self) -> None:
        """Write to the disk what waits there, unless that was done a moment ago.

        A run that was asked for and the end of a run are written at once; epochs may wait, as a run tells
        them again to the next driver.
        """
        self._storage.sync(after_seconds=_SYNC_SECONDS)

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """Make known values a run to be asked for next, once in the life of the study."""
        self._study.enqueue_trial(dict(values), skip_if_exists=True)
        self._storage.sync()

    @property
    def is_new(self) -> bool:
        """Whether nothing has been asked or enqueued yet."""
        return not self._study.get_trials(deepcopy=False)

    @property
    def name(self) -> str:
        """Name in the storage."""
        return self._study.study_name

    def ask(self, *, total: int) -> Asked | None:
        """Return the next run: first those that a dead driver left, then new ones, None after ``total``.

        Infeasible points are not counted: they take no run's place.
        """
        resumed = bool(self._orphans)
        if not resumed and self._num_runs + len(self._live) >= total:
            return None
        with self._storage.composing():
            if resumed:
                trial = optuna.Trial(self._study, self.trial(self._orphans.pop(0))._trial_id)
            else:
                trial = self._study.ask()
            try:
                spec, reason = self.space.spec(trial, self.bounds), None
            except StudyError:
                raise
            except ValueError as error:
                spec, reason = None, str(error)
            if spec is not None and _MADE_WITH not in trial.user_attrs:
                trial.set_user_attr(_MADE_WITH, {"spec": to_plain(spec), **self.made_with})
        # Before anything is written into the run's folder: another run of its number could not go on there.
        self._storage.sync()
        self._live[trial.number] = trial
        self._curves[trial.number] = dict(self.trial(trial.number).intermediate_values) if resumed else {}
        if resumed:
            self._undecided.add(trial.number)
        return Asked(number=trial.number, spec=spec, values=trial.params, resumed=resumed, reason=reason)

    def curve(self, number: int) -> Mapping[int, float]:
        """Return the scores that a live run has reported, by epoch."""
        return self._curves[number]

    def is_stopped(self, number: int) -> bool:
        """Whether the pruner had decided to stop a run, though the driver died before it was told so."""
        return _STOPPED in self.trial(number).user_attrs

    def report(self, number: int, report: EpochReport) -> bool:
        """Store an epoch's score, unless it is stored already, and answer whether to go on."""
        curve, trial = self._curves[number], self._live[number]
        is_stored = report.epoch in curve
        if is_stored and (number not in self._undecided or report.epoch < max(curve)):
            return True
        if not is_stored:
            trial.report(report.score, report.epoch)
            curve[report.epoch] = report.score
        stop = self._is_to_stop(number, report)
        if stop:
            trial.set_user_attr(_STOPPED, report.epoch)
        self.sync()
        self._undecided.discard(number)
        return not stop

    def _is_to_stop(self, number: int, report: EpochReport) -> bool:
        if not math.isfinite(report.score):
            return True
        # A run that has trained all its epochs is not stopped any more: it has finished.
        if report.epoch >= self.space.base.epochs:
            return False
        if number not in self._undecided:
            return self._live[number].should_prune()
        # A driver may have died between the epoch and what it would have decided.
        optuna_trial = undecided(self.trial(number), self.name, self.pruning)
        return self._pruner.prune(self._study, optuna_trial)

    def tell(self, number: int, result: RunResult) -> None:
        """Store how a run ended; a partial or missing score never counts as a finished one."""
        trial = self._live[number]
        trial.set_user_attr("outcome", str(result.outcome))
        trial.set_user_attr("seconds", result.seconds)
        if result.error is not None:
            trial.set_user_attr("reason", result.error)
        if result.outcome is Outcome.FINISHED and result.score is not None and math.isfinite(result.score):
            self._study.tell(trial, result.score)
        elif result.outcome is Outcome.PRUNED:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif result.outcome is Outcome.INFEASIBLE:
            # Infeasible points rank behind all others in TPE, whatever their values.
            trial.set_constraint("infeasible", 1.0)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)
        self._storage.sync()
        self._forget(number)
        self._num_runs += result.outcome is not Outcome.INFEASIBLE

    def leave(self, number: int) -> None:
        """Leave a live run as it is; the next driver, or the next ``ask``, goes on with it."""
        self._forget(number)
        self._orphans.append(number)

    def _forget(self, number: int) -> None:
        del self._live[number], self._curves[number]
        self._undecided.discard(number)

    @property
    def uid(self) -> str:
        """Short random name that tells this study from others in a folder of the same name."""
        if "uid" not in self._study.user_attrs:
            self._study.set_user_attr("uid", secrets.token_hex(3))
            self._storage.sync()
        return str(self._study.user_attrs["uid"])

    @property
    def live(self) -> tuple[int, ...]:
        """Numbers of the runs that were asked for and have not ended."""
        return tuple(self._live)

    def trial(self, number: int) -> FrozenTrial:
        """Return what is stored of a run."""
        return self._study.get_trials(deepcopy=False)[number]

    def trials(self) -> list[FrozenTrial]:
        """Return what is stored of all runs, by number."""
        return self._study.get_trials(deepcopy=False)

    def best(self) -> FrozenTrial | None:
        """Return the finished run of the highest score."""
        return best_of(self.trials())


def made_with(trial: FrozenTrial) -> Mapping[str, Any]:
    """Return what a run was made with: its ``spec`` as plain values, and what the study was opened with.

    Raises:
        StudyError: the run's values cannot work together, so it was never made.
    """
    found: Mapping[str, Any] | None = trial.user_attrs.get(_MADE_WITH)
    if found is None:
        raise StudyError(f"run {trial.number} was never made: {trial.user_attrs.get('reason', 'no reason')}")
    return found


def read_trials(folder: Path) -> list[FrozenTrial]:
    """Return what is stored of a study's runs, without driving it: also while another process does.

    Raises:
        StudyError: there is no study.
    """
    if not (folder / DATABASE_FILE).exists():
        others = sorted(path.parent.name for path in folder.parent.glob(f"*/{DATABASE_FILE}"))
        raise StudyError(f"study is {folder.name!r}{nearest(folder.name, others)} (in {folder.parent})")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = storage_url(folder)
    name = optuna.get_all_study_names(storage)[0]
    return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """Return the finished run of the highest score."""
    return next(iter(ranked(trials)), None)


def ranked(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the finished runs, the highest score first; runs that were stopped have no final score."""
    finished = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return sorted(finished, key=lambda trial: -trial.values[0])


def is_infeasible(trial: FrozenTrial) -> bool:
    """Return whether a run was told to be impossible instead of bad."""
    return trial.user_attrs.get("outcome") == str(Outcome.INFEASIBLE)


def outcome_of(trial: FrozenTrial) -> str:
    """Return a run's outcome in our words; ``running`` for one that has not ended."""
    return str(trial.user_attrs.get("outcome", trial.state.name.lower()))


def storage_url(folder: Path) -> str:
    """Return the storage's address, as Optuna's other tools take it."""
    return f"sqlite:///{(folder / DATABASE_FILE).resolve()}"


def run_folder(folder: Path, number: int) -> Path:
    """Return the folder of one of a study's runs."""
    return folder / "runs" / f"{number:04d}"


def lock_study(folder: Path) -> Any:
    """Return what keeps other drivers out until it is closed.

    Raises:
        StudyError: another process drives the study.
    """
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StudyError(
            f"study {folder} is being driven by another process: wait for its end, or use --name for another"
        ) from None
    return lock
