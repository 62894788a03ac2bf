"""Groups of Ray Train workers that take run after run: the start of a group is paid once, not for every run.

The first worker of a group asks a coordinator for runs and shares the answer with the others; the driver
gives out runs, answers reports, and starts a group again when one of its workers dies.
"""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray

from hpo.cluster import ClusterConfig, no_room
from hpo.driver import Driver, Objective, OnEpoch
from hpo.identity import StudyError
from hpo.tuning import read_result, told
from training.ranks import Ranks, from_first
from training.results import EpochReport, Outcome, RunResult
from training.spec import RunSpec, from_plain, to_plain

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
# The others of a group wait in a collective operation, which must not last forever.
_NEWS_SECONDS = 20.0
_JOIN_SECONDS = 30.0
_START_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_STOP: dict[str, Any] = {"stop": True}


class GroupObjective(Protocol):
    """Trains a run in one of several processes; pickled into workers."""

    def __call__(self, spec: RunSpec, folder: Path, on_epoch: OnEpoch, ranks: Ranks) -> RunResult:
        """Train; only the first process's reports are told and answered."""


class Coordinator:
    """Between the driver and the groups: an actor without cores, which outlives the groups' workers."""

    def __init__(self) -> None:
        self._jobs: dict[int, Mapping[str, Any]] = {}
        self._answers: dict[tuple[int, int], bool] = {}
        self._events: list[tuple[str, int, str]] = []
        self._is_open = True

    def give(self, group: int, job: Mapping[str, Any]) -> None:
        """Give a run to a group, which keeps it until it has ended."""
        self._jobs[group] = job

    def take_back(self, group: int) -> None:
        """Give up the run of a group whose workers died."""
        self._jobs.pop(group, None)

    def job(self, group: int) -> Mapping[str, Any] | None:
        """Return the run of a group, None when there is none yet."""
        return self._jobs.get(group) if self._is_open else _STOP

    def tell(self, number: int, epoch: int, report: str) -> None:
        """Report an epoch."""
        self._answers.pop((number, epoch), None)
        self._events.append(("epoch", number, report))

    def end(self, group: int, number: int, result: str) -> None:
        """Report how a run ended; the group waits for another."""
        self._jobs.pop(group, None)
        self._events.append(("ended", number, result))

    def answer(self, number: int, epoch: int, go_on: bool) -> None:
        """Answer a report."""
        self._answers[number, epoch] = go_on

    def answer_to(self, number: int, epoch: int) -> bool | None:
        """Return the answer once; None while there is none."""
        return self._answers.pop((number, epoch), None)

    def take(self) -> list[tuple[str, int, str]]:
        """Return what was reported since."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Let the groups end."""
        self._is_open = False


def run_on_warm_groups(
    driver: Driver, objective: Objective, config: ClusterConfig, *, on_idle: Callable[[], None]
) -> None:
    """Make a study's runs on an initialized Ray, on as many groups as there are slots."""
    dispatcher = _Dispatcher(driver, objective, config)
    try:
        while dispatcher.step():
            on_idle()
            time.sleep(_POLL_SECONDS)
    finally:
        dispatcher.close()


class _Dispatcher:
    def __init__(self, driver: Driver, objective: Objective, config: ClusterConfig) -> None:
        self._driver, self._config = driver, config
        self._coordinator = ray.remote(num_cpus=0)(Coordinator).remote()
        start = partial(_Group, coordinator=self._coordinator, objective=objective, config=config)
        self._start: Callable[[int], _Group] = start
        self._groups: dict[int, _Group] = {}
        self._numbers: dict[int, int] = {}
        self._deaths: dict[int, int] = {}

    def step(self) -> bool:
        """Handle what was reported and give out runs; False when nothing is left to do."""
        for kind, number, text in ray.get(self._coordinator.take.remote()):
            if kind == "epoch":
                self._epoch(number, EpochReport(**json.loads(text)))
            else:
                self._ended(number, json.loads(text))
        self._replace_dead()
        self._driver.study.sync()
        for group in range(self._config.slots):
            if group in self._numbers:
                continue
            asked = self._driver.next()
            if asked is None:
                break
            assert asked.spec is not None
            job = {
                "number": asked.number,
                "spec": to_plain(asked.spec),
                "folder": str(self._driver.folder(asked.number).resolve()),
            }
            ray.get(self._coordinator.give.remote(group, job))
            self._numbers[group] = asked.number
            if group not in self._groups:
                self._groups[group] = self._start(group)
        return bool(self._numbers)

    def close(self) -> None:
        """End the groups; what does not end soon ends with Ray."""
        try:
            ray.get(self._coordinator.close.remote(), timeout=_JOIN_SECONDS)
        except ray.exceptions.RayError:
            return
        deadline = time.monotonic() + _JOIN_SECONDS
        for group in self._groups.values():
            group.join(max(deadline - time.monotonic(), 0.0))
        ray.kill(self._coordinator)

    def _epoch(self, number: int, report: EpochReport) -> None:
        go_on = number in self._driver.study.live and self._driver.epoch(number, report)
        ray.get(self._coordinator.answer.remote(number, report.epoch, go_on))

    def _ended(self, number: int, plain: Mapping[str, Any]) -> None:
        if number in self._driver.study.live:
            self._driver.ended(number, read_result(self._driver, number, plain))
        self._numbers = {group: other for group, other in self._numbers.items() if other != number}

    def _replace_dead(self) -> None:
        for index, group in list(self._groups.items()):
            if group.is_alive():
                continue
            if group.had_no_room:
                raise StudyError(no_room(self._config))
            del self._groups[index]
            number = self._numbers.pop(index, None)
            ray.get(self._coordinator.take_back.remote(index))
            if number is None:
                continue
            self._deaths[number] = self._deaths.get(number, 0) + 1
            reason = f"its workers died {self._deaths[number]} times: {group.error}"
            self._driver.died(number, reason, again=self._deaths[number] <= self._config.max_restarts)


class _Group:
    """A group of workers, and the thread that waits for its end."""

    def __init__(self, index: int, *, coordinator: Any, objective: Objective, config: ClusterConfig) -> None:
        self.error: str | None = None
        self.had_no_room = False
        self._thread = threading.Thread(
            target=self._run, args=(index, coordinator, objective, config), name="group", daemon=True
        )
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether its workers still take runs."""
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait for its end."""
        self._thread.join(seconds)

    def _run(self, index: int, coordinator: Any, objective: Objective, config: ClusterConfig) -> None:
        try:
            _fit(index, coordinator, objective, config)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}".splitlines()[0]
            # A class that Ray does not export.
            failure = getattr(error, "controller_failure", None)
            self.had_no_room = type(failure).__name__ == "WorkerGroupStartupTimeoutError"


def _fit(index: int, coordinator: Any, objective: Objective, config: ClusterConfig) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer

    resources = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    TorchTrainer(
        take_runs,
        train_loop_config={"group": index, "coordinator": coordinator, "objective": objective},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers_per_run,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={name: count for name, count in resources.items() if count > 0},
        ),
        run_config=ray.train.RunConfig(
            # Nothing is kept there: runs have their own folders.
            name=f"group-{os.getpid()}-{index}-{time.monotonic_ns()}",
            storage_path=_scratch(),
            failure_config=ray.train.FailureConfig(
                max_failures=0, controller_failure_limit=_failed_starts(config.wait_seconds)
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    ).fit()


def _failed_starts(wait_seconds: float) -> int:
    """Return how many failed starts of workers are allowed: Ray Train limits their number, not the time."""
    return max(math.ceil(wait_seconds / float(os.environ.get(_START_SECONDS, "60"))) - 1, 0)


def _scratch() -> str:
    return str(Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "groups")


def take_runs(config: Mapping[str, Any]) -> None:
    """Make run after run in one worker of a group, until the coordinator closes."""
    ranks = Ranks.current()
    coordinator, group = config["coordinator"], config["group"]
    while True:
        job = from_first(_wait_for_job(coordinator, group) if ranks.is_first else None, ranks=ranks)
        if job == _STOP:
            return
        if job is not None:
            _make_run(job, config["objective"], ranks, coordinator=coordinator, group=group)


def _wait_for_job(coordinator: Any, group: int) -> Any:
    deadline = time.monotonic() + _NEWS_SECONDS
    while time.monotonic() < deadline:
        job = ray.get(coordinator.job.remote(group))
        if job is not None:
            return job
        time.sleep(_POLL_SECONDS)
    return None


def _make_run(
    job: Mapping[str, Any], objective: GroupObjective, ranks: Ranks, *, coordinator: Any, group: int
) -> None:
    number = job["number"]

    def on_epoch(report: EpochReport) -> bool:
        if not ranks.is_first:
            return True
        ray.get(coordinator.tell.remote(number, report.epoch, json.dumps(asdict(report))))
        while (answer := ray.get(coordinator.answer_to.remote(number, report.epoch))) is None:
            time.sleep(_POLL_SECONDS)
        return bool(answer)

    try:
        result = told(objective(from_plain(job["spec"]), Path(job["folder"]), on_epoch, ranks))
    except Exception as error:
        if ranks.world_size > 1 and not ranks.is_first:
            raise
        logger.exception("run %d failed", number)
        result = {"outcome": str(Outcome.FAILED), "error": f"{type(error).__name__}: {error}"}
        ray.get(coordinator.end.remote(group, number, json.dumps(result)))
        if ranks.world_size > 1:
            # The others may be waiting for this process: the group starts again.
            raise
        return
    if ranks.is_first:
        ray.get(coordinator.end.remote(group, number, json.dumps(result)))
