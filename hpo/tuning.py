"""Ray Tune executes the runs that a driver decides on, each in an actor or as a Ray Train run.

Tune's searcher asks the driver, its scheduler passes every report to the driver and applies the answer.
"""

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpo.cluster import ClusterConfig, RayBrokenError, no_room
from hpo.driver import Driver, Objective
from hpo.identity import IDENTITY_FILE, StudyError
from training.results import EpochReport, Outcome, RunResult
from training.spec import from_plain, to_plain

logger = logging.getLogger(__name__)

_EPOCH, _ENDED = "epoch_report", "run_result"
_POLL_SECONDS = 0.05


class Answers:
    """Between the driver and runs that must end by themselves: an actor without cores."""

    def __init__(self) -> None:
        self._answers: dict[tuple[int, int], bool] = {}

    def put(self, number: int, epoch: int, go_on: bool) -> None:
        """Answer an epoch of a run."""
        self._answers[number, epoch] = go_on

    def take(self, number: int, epoch: int) -> bool | None:
        """Return the answer once; None while there is none."""
        return self._answers.pop((number, epoch), None)


def run_on_tune(
    driver: Driver, objective: Objective, config: ClusterConfig, *, on_idle: Callable[[], None]
) -> None:
    """Make a study's runs on an initialized Ray.

    Raises:
        RuntimeError: Tune or Ray broke down.
    """
    import ray
    from ray import tune

    if not config.verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        # Tune's scheduler is not told of processes that die and are replaced.
        logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    # As many may wait for a process as there are slots: with one at a time, 64 processes start one after the
    # other, and an autoscaler that sees a single run waiting adds a single machine.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(config.slots)
    scratch = driver.study.folder / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    in_groups = config.lane == "train"
    answers = ray.remote(num_cpus=0)(Answers).remote() if in_groups else None
    bridge = _Bridge(driver, config, answers=answers, on_idle=on_idle)
    searcher, scheduler, watch = _around(bridge)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(make_run, objective=objective, answers=answers), _resources(config)
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=None,
            # A fresh process imports torch for five seconds.
            reuse_actors=True,
            trial_dirname_creator=_folder_name,
            trial_name_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="runs",
            storage_path=str(scratch.resolve()),
            verbose=0,
            # Whether a run is made again is for the driver to say.
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[watch],
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        # Tune calls it an error of its own.
        reason = _study_error(error)
        if reason is None:
            raise
        raise reason from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if bridge.broken is not None:
        raise RayBrokenError(bridge.broken)


def _study_error(error: BaseException | None) -> StudyError | None:
    """Return what ended a search with a reason in words, out of what Tune makes of it."""
    while error is not None and not isinstance(error, StudyError):
        error = error.__cause__ or error.__context__
    return error


def _resources(config: ClusterConfig) -> dict[str, float]:
    if config.lane == "train":
        # Ray Train counts the workers itself; this process only waits for them, on a machine that stays.
        return {"cpu": 0, "node:__internal_head__": 0.001}
    counted = {"cpu": config.cpus_per_worker, "gpu": config.gpus_per_worker}
    return {name: count for name, count in counted.items() if count > 0}


def _folder_name(ray_trial: Any) -> str:
    return f"{ray_trial.config['number']:04d}-{ray_trial.trial_id}"


def make_run(config: Mapping[str, Any], objective: Objective, answers: Any = None) -> None:
    """Make one run in a worker, and report every epoch and how it ended.

    Args:
        config: number, run and folder.
        objective: trains it.
        answers: where the driver answers; None lets Tune end this thread in a report.
    """
    from ray import tune

    def on_epoch(report: EpochReport) -> bool:
        tune.report({_EPOCH: json.dumps(asdict(report))})
        # A run on several workers must end by itself: if Tune ended it here, they would never be released.
        return answers is None or _answer(answers, config["number"], report.epoch)

    spec, folder = from_plain(json.loads(config["spec"])), Path(config["folder"])
    try:
        require_study(folder)
        result = told(objective(spec, folder, on_epoch))
    except Exception as error:
        # A bug of ours is no reason to try the same again, as Tune would.
        logger.exception("run %s failed", folder.name)
        result = {"outcome": str(Outcome.FAILED), "error": f"{type(error).__name__}: {error}"}
    # As text: Tune flattens what is nested.
    tune.report({_ENDED: json.dumps(result)})


def require_study(folder: Path) -> None:
    """Refuse a run on a machine that does not see its study; this one may have joined after the start.

    Raises:
        StudyError: it does not.
    """
    study = folder.parent.parent
    if not (study / IDENTITY_FILE).is_file():
        raise StudyError(
            f"machine {platform.node()} does not see {study}, but every machine must: mount the storage there"
        )


def _answer(answers: Any, number: int, epoch: int) -> bool:
    import ray

    while (answer := ray.get(answers.take.remote(number, epoch))) is None:
        time.sleep(_POLL_SECONDS)
    return bool(answer)


def told(result: RunResult) -> dict[str, Any]:
    """Return what the driver must know of a result, as plain values."""
    plain = {name: getattr(result, name) for name in ("error", "score", "epochs", "seconds")}
    checkpoint = None if result.checkpoint is None else str(result.checkpoint)
    return plain | {
        "outcome": str(result.outcome),
        "score_by_session": dict(result.score_by_session),
        "checkpoint": checkpoint,
    }


def read_result(driver: Driver, number: int, plain: Mapping[str, Any]) -> RunResult:
    """Return a result from what ``told`` returned."""
    result = driver.result(number, Outcome(plain["outcome"]), plain["error"])
    if "epochs" not in plain:
        return result
    checkpoint = None if plain["checkpoint"] is None else Path(plain["checkpoint"])
    return replace(
        result,
        score=plain["score"],
        score_by_session=plain["score_by_session"],
        epochs=plain["epochs"],
        seconds=plain["seconds"],
        checkpoint=checkpoint,
    )


class _Bridge:
    """What Tune's searcher and scheduler share."""

    def __init__(
        self, driver: Driver, config: ClusterConfig, *, answers: Any, on_idle: Callable[[], None]
    ) -> None:
        self.driver, self.on_idle = driver, on_idle
        self.broken: str | None = None
        self._ran_at = time.monotonic()
        self._config, self._answers = config, answers
        self._numbers: dict[str, int] = {}
        self._deaths: dict[int, int] = {}
        self.errors: dict[str, str] = {}

    def watch(self, *, running: bool) -> None:
        """End the search when runs have waited too long for a machine; Tune itself waits for ever."""
        self.driver.study.sync()
        now = time.monotonic()
        if running or not self._numbers:
            self._ran_at = now
        elif now - self._ran_at > self._config.wait_seconds:
            raise StudyError(no_room(self._config))

    def suggest(self, trial_id: str, finished: Any) -> Any:
        self.on_idle()
        if self.broken is not None:
            return finished
        if len(self._numbers) >= self._config.slots:
            return None
        asked = self.driver.next()
        if asked is None:
            # As long as a run is live it may turn out to be infeasible, and its place is free again.
            return None if self._numbers else finished
        assert asked.spec is not None
        self._numbers[trial_id] = asked.number
        return {
            "number": asked.number,
            "spec": json.dumps(to_plain(asked.spec)),
            "folder": str(self.driver.folder(asked.number).resolve()),
        }

    def goes_on(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        self.on_idle()
        number = self._numbers.get(trial_id)
        if number is None:
            return False
        if _EPOCH in result:
            return self._epoch(number, EpochReport(**json.loads(result[_EPOCH])))
        if _ENDED in result and number in self.driver.study.live:
            plain = json.loads(result[_ENDED])
            self.driver.ended(number, read_result(self.driver, number, plain))
        return False

    def _epoch(self, number: int, report: EpochReport) -> bool:
        study = self.driver.study
        go_on = number in study.live and self.broken is None and self.driver.epoch(number, report)
        if self._answers is not None:
            self._answers.put.remote(number, report.epoch, go_on)
        if not go_on and number in study.live and self._answers is None:
            study.leave(number)
        # A run that hears the answer itself ends by itself.
        return go_on or (self._answers is not None and self.broken is None)

    def ended(self, trial_id: str, *, error: bool) -> None:
        number = self._numbers.pop(trial_id, None)
        if number is None or number not in self.driver.study.live:
            return
        if not error:
            # It was left in the middle, while the search was stopping.
            self.driver.study.leave(number)
        else:
            self._died(number, trial_id)

    def _died(self, number: int, trial_id: str) -> None:
        self._deaths[number] = self._deaths.get(number, 0) + 1
        reason = self.errors.pop(trial_id, "nobody knows why")
        again = self._deaths[number] <= self._config.max_restarts
        self.driver.died(number, f"its process died {self._deaths[number]} times: {reason}", again=again)
        if self._answers is not None:
            # Its workers' resources stay taken until Ray ends.
            self.broken = f"the process of run {number} died, which trained on several workers"


def _error_of(ray_trial: Any) -> str:
    """Return in a line why a run's process ended."""
    error = ray_trial.get_pickled_error()
    if error is not None:
        return f"{type(error).__name__}, {_last_line(str(error))}"
    # Tune copies what it notes of an error to the run's storage a moment later.
    noted = Path(ray_trial.error_file)
    return _last_line(noted.read_text() if noted.is_file() else "")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nobody knows why"


def _around(bridge: _Bridge) -> tuple[Any, Any, Any]:
    """Return Tune's searcher, scheduler and callback around a bridge."""
    from ray.tune import Callback
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):
        """Asks the driver for runs; holds nothing that a snapshot of Tune's would have to keep."""

        def suggest(self, trial_id: str) -> Any:
            return bridge.suggest(trial_id, Searcher.FINISHED)

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:  # noqa: ARG002
            bridge.ended(trial_id, error=error)

        def save(self, checkpoint_path: str) -> None:
            """Keep nothing: the study is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing: the study is the state."""

        def __reduce__(self) -> Any:
            return (Searcher, ())

    class StudyScheduler(FIFOScheduler):
        """Passes every report to the driver and stops the runs that it stops."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:  # noqa: ARG002
            return str(self.CONTINUE if bridge.goes_on(trial.trial_id, result) else self.STOP)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
            bridge.errors[trial.trial_id] = _error_of(trial)

        def __reduce__(self) -> Any:
            return (FIFOScheduler, ())

    class Watch(Callback):
        """Looks at every step of Tune's loop, which no searcher or scheduler does while all runs wait."""

        def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:  # noqa: ARG002
            bridge.watch(running=any(trial.status == "RUNNING" for trial in trials))

        def __reduce__(self) -> Any:
            return (Callback, ())

    return StudySearcher(), StudyScheduler(), Watch()
