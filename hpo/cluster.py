"""Ray Tune executes the runs that a driver decides on. The only Ray import of the search.

Tune keeps nothing that matters: its searcher asks the driver, its scheduler passes every report to the driver
and applies the answer. When Tune, Ray or the driver dies, all of it is thrown away and started again.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpo.driver import Driver, Objective
from hpo.identity import StudyError
from training.results import EpochReport, Outcome, RunResult
from training.spec import from_plain, to_plain

logger = logging.getLogger(__name__)

_EPOCH, _ENDED = "epoch_report", "run_result"
_MAX_RESTARTS = 5

_ENVIRONMENT = {
    # Ray's memory monitor kills several workers at once, innocent ones, too, and that ends Tune's loop
    # (Ray 2.60). Every worker watches its own memory instead.
    "RAY_memory_monitor_refresh_ms": "0",
    # The older output is silent when told to be.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    # Tune's snapshots are never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Where runs execute.

    Attributes:
        slots: runs at the same time.
        cpus_per_run: cores of one run; torch has as many threads.
        gpus_per_run: GPUs of one run.
        address: of a running Ray cluster; None starts Ray on this machine for as long as the search takes.
        object_store_bytes: of that Ray; recordings are memory maps and never go through it.
        max_restarts: how often a run whose process died is tried again.
        verbose: show what Ray writes.
    """

    slots: int = 1
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    address: str | None = None
    object_store_bytes: int = 100_000_000
    max_restarts: int = 2
    verbose: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot run anything."""
        if self.slots < 1:
            raise ValueError(f"slots is {self.slots}, but must be at least 1")
        if self.cpus_per_run <= 0:
            raise ValueError(f"cpus_per_run is {self.cpus_per_run}, but must be above 0")
        if self.gpus_per_run < 0:
            raise ValueError(f"gpus_per_run is {self.gpus_per_run}, but must be at least 0")


def run_on_ray(
    driver: Driver,
    objective: Objective,
    config: ClusterConfig,
    *,
    on_idle: Callable[[], None] = lambda: None,
) -> None:
    """Make a study's runs on Ray, several at a time.

    Args:
        driver: decides.
        objective: trains one run; pickled into the workers.
        config: where.
        on_idle: called often while runs train.

    Raises:
        StudyError: Ray broke down again and again.
    """
    _prepare_environment()
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        _start_ray(config)
    try:
        for attempt in range(_MAX_RESTARTS):
            try:
                _run_tune(driver, objective, config, on_idle=on_idle)
                break
            except RuntimeError as error:
                # Ray's memory monitor on a cluster of somebody else's raises through Tune's loop.
                logger.warning("Ray Tune stopped (%s), starting it again: %d", error, attempt + 1)
                for number in driver.study.live:
                    driver.study.leave(number)
        else:
            raise StudyError(f"Ray Tune broke down {_MAX_RESTARTS} times; the same command goes on")
    finally:
        for number in driver.study.live:
            driver.study.leave(number)
        if started_here:
            ray.shutdown()


def _prepare_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _start_ray(config: ClusterConfig) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": config.verbose}
    if config.address is not None:
        ray.init(address=config.address, **quiet)
        return
    ray.init(
        # Resources are counted, not measured: as many as the slots need, however few cores there are.
        num_cpus=max(os.cpu_count() or 1, -(-config.slots * config.cpus_per_run // 1)),
        include_dashboard=False,
        object_store_memory=config.object_store_bytes,
        **quiet,
    )


def _run_tune(
    driver: Driver, objective: Objective, config: ClusterConfig, *, on_idle: Callable[[], None]
) -> None:
    from ray import tune

    if not config.verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    scratch = driver.study.folder / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    resources = {"cpu": config.cpus_per_run, "gpu": config.gpus_per_run}
    searcher, scheduler = _bridge(driver, slots=config.slots, on_idle=on_idle)
    trainable = tune.with_resources(
        tune.with_parameters(make_run, objective=objective),
        {name: count for name, count in resources.items() if count > 0},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,
            # A fresh process imports torch for five seconds.
            reuse_actors=True,
            trial_dirname_creator=_folder_name,
            trial_name_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="runs",
            storage_path=str(scratch.resolve()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.max_restarts),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _folder_name(ray_trial: Any) -> str:
    return f"{ray_trial.config['number']:04d}"


def make_run(config: Mapping[str, Any], objective: Objective) -> None:
    """Make one run in a worker, and report every epoch and how it ended."""
    from ray import tune

    def on_epoch(report: EpochReport) -> bool:
        # Tune answers by letting this call return, or by ending the thread in it.
        tune.report({_EPOCH: json.dumps(asdict(report))})
        return True

    spec, folder = from_plain(json.loads(config["spec"])), Path(config["folder"])
    try:
        result = told(objective(spec, folder, on_epoch))
    except Exception as error:
        # A bug of ours is no reason to try the same again, as Tune would.
        logger.exception("run %s failed", folder.name)
        result = {"outcome": str(Outcome.FAILED), "error": f"{type(error).__name__}: {error}"}
    # As text: Tune flattens what is nested.
    tune.report({_ENDED: json.dumps(result)})


def told(result: RunResult) -> dict[str, Any]:
    """Return what the driver must know of a result, as plain values."""
    plain = {name: getattr(result, name) for name in ("error", "score", "epochs", "seconds")}
    checkpoint = None if result.checkpoint is None else str(result.checkpoint)
    return plain | {
        "outcome": str(result.outcome),
        "score_by_session": dict(result.score_by_session),
        "checkpoint": checkpoint,
    }


def _bridge(driver: Driver, *, slots: int, on_idle: Callable[[], None]) -> tuple[Any, Any]:
    """Return Tune's searcher and scheduler around a driver."""
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    numbers: dict[str, int] = {}

    class StudySearcher(Searcher):
        """Asks the driver for runs; holds nothing that a snapshot of Tune's would have to keep."""

        def suggest(self, trial_id: str) -> Any:
            on_idle()
            if len(numbers) >= slots:
                return None
            asked = driver.next()
            if asked is None:
                # As long as a run is live it may turn out to be infeasible, and its place is free again.
                return None if numbers else Searcher.FINISHED
            assert asked.spec is not None
            numbers[trial_id] = asked.number
            return {
                "number": asked.number,
                "spec": json.dumps(to_plain(asked.spec)),
                "folder": str(driver.folder(asked.number).resolve()),
            }

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:  # noqa: ARG002
            number = numbers.pop(trial_id, None)
            if number is not None and error:
                driver.died(number, "its process died again and again (see --verbose)")

        def save(self, checkpoint_path: str) -> None:
            """Keep nothing: the study is the state."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing: the study is the state."""

        def __reduce__(self) -> Any:
            return (Searcher, ())

    class StudyScheduler(FIFOScheduler):
        """Passes every report to the driver and stops the runs that it stops."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:  # noqa: ARG002
            on_idle()
            number = numbers.get(trial.trial_id)
            if number is None or number not in driver.study.live:
                return str(self.STOP)
            if _EPOCH in result:
                go_on = driver.epoch(number, EpochReport(**json.loads(result[_EPOCH])))
                if not go_on and number in driver.study.live:
                    driver.study.leave(number)
                return str(self.CONTINUE if go_on else self.STOP)
            if _ENDED in result:
                driver.ended(number, _result(driver, number, json.loads(result[_ENDED])))
            return str(self.STOP)

        def __reduce__(self) -> Any:
            return (FIFOScheduler, ())

    return StudySearcher(), StudyScheduler()


def _result(driver: Driver, number: int, plain: Mapping[str, Any]) -> RunResult:
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
