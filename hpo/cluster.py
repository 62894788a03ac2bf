"""Runs of a search on a Ray cluster: where Ray is started, watched and started again.

Ray keeps nothing that matters. When it, Tune or the driver dies, all of it is thrown away and started again;
what there is to know is in the study and in the runs' folders.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpo.driver import Driver, Objective
from hpo.identity import StudyError
from hpo.lanes import Lane
from training.nodes import StorageError, require_shared

logger = logging.getLogger(__name__)

_MAX_RESTARTS, _MAX_STARTS = 5, 3

_ENVIRONMENT = {
    # Ray's memory monitor kills several workers at once, innocent ones, too. Every worker watches its own
    # memory instead.
    "RAY_memory_monitor_refresh_ms": "0",
    # The older output is silent when told to be.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Tune's snapshots are never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "1000000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Where runs execute.

    Attributes:
        slots: runs at the same time.
        lane: how a run is executed, see ``hpo.lanes``.
        workers_per_run: processes that share each batch of a run.
        cpus_per_worker: cores of each; torch has as many threads.
        gpus_per_worker: GPUs of each.
        address: of a running Ray cluster; None starts Ray on this machine for as long as the search takes.
        object_store_bytes: of that Ray; recordings are memory maps and never go through it.
        dashboard: start Ray's dashboard, too.
        max_restarts: how often a run whose process died is tried again.
        wait_seconds: for a machine to run on, at the start and when none is left; then the search ends.
        run_timeout_seconds: a run that finishes no epoch for so long has hung and is given up; None: never.
        verbose: show what Ray writes.
    """

    slots: int = 1
    lane: Lane = "actors"
    workers_per_run: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    address: str | None = None
    object_store_bytes: int = 100_000_000
    dashboard: bool = False
    max_restarts: int = 2
    wait_seconds: float = 1200.0
    run_timeout_seconds: float | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot run anything."""
        for name in ("slots", "workers_per_run"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.cpus_per_worker <= 0:
            raise ValueError(f"cpus_per_worker is {self.cpus_per_worker}, but must be above 0")
        if self.gpus_per_worker < 0:
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker}, but must be at least 0")
        if self.run_timeout_seconds is not None and self.run_timeout_seconds <= 0:
            raise ValueError(f"run_timeout_seconds is {self.run_timeout_seconds}, but must be above 0")
        if self.lane == "actors" and self.workers_per_run > 1:
            raise ValueError(f"workers_per_run is {self.workers_per_run}, but an actor is one process")
        if self.lane != "actors" and self.gpus_per_worker % 1:
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker}, but must be whole in a group")

    @property
    def gpus_per_run(self) -> float:
        """GPUs of one run."""
        return self.workers_per_run * self.gpus_per_worker

    @property
    def cpus(self) -> float:
        """Cores of all runs at a time."""
        return self.slots * self.workers_per_run * self.cpus_per_worker


class RayBrokenError(RuntimeError):
    """Ray cannot go on and must be started again."""


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
    started_here = start_ray(config)
    import ray

    attempt = 0
    try:
        _require_storage(driver, objective)
        while attempt < _MAX_RESTARTS:
            start_ray(config)
            ended = _num_ended(driver)
            try:
                _run_lane(driver, objective, config, on_idle=on_idle)
                break
            except RuntimeError as error:
                attempt = 1 if _num_ended(driver) > ended else attempt + 1
                logger.warning("Ray stopped (%s), starting it again", error)
            for number in driver.study.live:
                driver.study.leave(number)
            if started_here:
                ray.shutdown()
        else:
            raise StudyError(f"Ray broke down {_MAX_RESTARTS} times in a row; the same command goes on")
    finally:
        for number in driver.study.live:
            driver.study.leave(number)
        if started_here:
            ray.shutdown()


def no_room(config: ClusterConfig) -> str:
    """Return why a search ends that has waited for machines as long as it may."""
    return (
        f"no machine had room for a run for {config.wait_seconds / 60:.3g} minutes; see `ray status` for why "
        "none is there. The same command goes on; --wait sets the time"
    )


def _require_storage(driver: Driver, objective: Objective) -> None:
    store = getattr(objective, "store", None)
    try:
        require_shared(driver.study.folder, [] if store is None else [store])
    except StorageError as error:
        raise StudyError(str(error)) from None


def _num_ended(driver: Driver) -> int:
    return sum(trial.state.is_finished() for trial in driver.study.trials())


def _run_lane(
    driver: Driver, objective: Objective, config: ClusterConfig, *, on_idle: Callable[[], None]
) -> None:
    if config.lane == "warm":
        from hpo.warm_group import run_on_warm_groups

        run_on_warm_groups(driver, objective, config, on_idle=on_idle)
    else:
        from hpo.tuning import run_on_tune

        survive_memory_monitor()
        run_on_tune(driver, objective, config, on_idle=on_idle)


def start_ray(config: ClusterConfig) -> bool:
    """Join the cluster that is meant, or start one of this machine; False when this process has one."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": config.verbose}
    if config.address is not None:
        ray.init(address=config.address, **quiet)
        return True
    cpus = max(os.cpu_count() or 1, int(-(-config.cpus // 1)))
    for attempt in range(1, _MAX_STARTS + 1):
        try:
            ray.init(
                address="local",
                # Resources are counted, not measured: as many as the slots need, however few cores there are.
                num_cpus=cpus,
                include_dashboard=config.dashboard,
                object_store_memory=config.object_store_bytes,
                **quiet,
            )
            return True
        except Exception as error:
            # Ray gives its own processes 30 s to start, which a busy machine may need longer for. That error
            # has no class of its own.
            ray.shutdown()
            logger.warning("Ray did not start (%s), attempt %d of %d", error, attempt, _MAX_STARTS)
    raise StudyError(f"Ray did not start {_MAX_STARTS} times: is the machine overloaded, or the disk full?")


def survive_memory_monitor() -> None:
    """Let Tune treat a worker that Ray's memory monitor killed as what it is: a worker that died.

    In Ray 2.60 that error is of no kind that Tune expects, and ends its loop for all runs. On a cluster that
    others have started the monitor is usually on.
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    if getattr(RayActorManager, "_survives_memory_monitor", False):
        return
    original = RayActorManager._actor_task_failed

    def task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        original(self, tracked_actor_task=tracked_actor_task, exception=exception)

    RayActorManager._actor_task_failed = task_failed
    RayActorManager._survives_memory_monitor = True
