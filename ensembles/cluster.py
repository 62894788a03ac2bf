"""Members over Ray: as many at once as resources allow. The only Ray import of the ensembles.

One-process runs are made by actors that stay, because a fresh process imports torch for five seconds; runs of
several processes are trained by Ray Train, one after another. A process or machine that dies costs the epoch
it was in: another goes on from the member's folder, so all machines must share the storage of the build.
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ensembles.identity import BuildError
from ensembles.making import make_member, train_member
from ensembles.members import MemberJob, MemberResult, OnEpoch
from training.nodes import StorageError, former_sigterm, require_shared
from training.results import EpochReport, Outcome, RunResult

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_MAX_STARTS = 3
_ENVIRONMENT = {
    # Ray's memory monitor kills several workers at once, innocent ones, too (Ray 2.60).
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Where members are made.

    Attributes:
        slots: members at the same time; None for as many as a running cluster has room for.
        cpus_per_member: cores of one process of a member; torch has as many threads.
        gpus_per_member: GPUs of one process of a member.
        workers: processes that train one member together; above 1 members follow one another.
        address: of a running Ray cluster; None starts Ray on this machine for as long as the build takes.
        object_store_bytes: of that Ray; recordings and predictions never go through it.
        max_restarts: how often a member whose process died is tried again.
        wait_seconds: for a machine to make members on when there is none; then the build ends.
    """

    slots: int | None = 1
    cpus_per_member: float = 1.0
    gpus_per_member: float = 0.0
    workers: int = 1
    address: str | None = None
    object_store_bytes: int = 100_000_000
    max_restarts: int = 2
    wait_seconds: float = 1200.0

    def __post_init__(self) -> None:
        """Refuse what cannot make anything."""
        for name, least in (("slots", 1), ("workers", 1), ("max_restarts", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if self.slots is None and self.address is None:
            raise ValueError("slots is None, but must be a number unless address is that of a cluster")
        if self.cpus_per_member <= 0 or self.gpus_per_member < 0:
            raise ValueError(
                f"a member has {self.cpus_per_member} cores and {self.gpus_per_member} GPUs, "
                "but must have more than 0 cores and at least 0 GPUs"
            )


def make_on_ray(
    jobs: Sequence[MemberJob],
    on_epoch: OnEpoch,
    *,
    config: ClusterConfig,
    on_idle: Callable[[], None] = lambda: None,
) -> Iterator[MemberResult]:
    """Make members on a Ray cluster and yield how each of them ended.

    Args:
        jobs: the members.
        on_epoch: called after each epoch of a member.
        config: where.
        on_idle: called often while members train.

    Raises:
        BuildError: Ray does not start, no machine has room for a member, or a machine does not reach the
            build or the recordings.
    """
    if not jobs:
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    started_here = not ray.is_initialized()
    if started_here:
        with former_sigterm():
            _start_ray(config)
    try:
        try:
            # Members are in the build's folder members/, predictions beside it.
            require_shared(jobs[0].predictions.parent, [jobs[0].store])
        except StorageError as error:
            raise BuildError(str(error)) from None
        if config.workers > 1:
            yield from _one_after_another(jobs, on_epoch, config)
        else:
            yield from _Pool(jobs, config).run(on_epoch, on_idle)
    finally:
        if started_here:
            with former_sigterm():
                ray.shutdown()


def _start_ray(config: ClusterConfig) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.address is not None:
        ray.init(address=config.address, **quiet)
        return
    for attempt in range(_MAX_STARTS):
        try:
            ray.init(
                # Resources are counted, not measured: as many as the slots need, however few cores there are.
                address="local",
                num_cpus=_num_cpus(config),
                include_dashboard=False,
                object_store_memory=config.object_store_bytes,
                **quiet,
            )
            return
        except Exception as error:
            # Ray gives its own processes 30 s to start; on a loaded machine that is not always enough, and
            # what it raises then has no type of its own.
            ray.shutdown()
            if attempt + 1 == _MAX_STARTS:
                raise BuildError(
                    f"Ray did not start in {_MAX_STARTS} attempts ({error}); try again when the machine is "
                    "less busy, or give --address of a running cluster"
                ) from error
            logger.warning("Ray did not start, trying again: %s", error)


def _num_cpus(config: ClusterConfig) -> int:
    processes = (config.slots or 1) if config.workers == 1 else config.workers
    return max(os.cpu_count() or 1, math.ceil(processes * config.cpus_per_member))


class _Maker:
    """Makes one member after another in a process of its own."""

    def __init__(self, reports: Any) -> None:
        self._reports = reports

    def ready(self) -> None:
        """Answer, once a machine had room for this process."""

    def make(self, job: MemberJob) -> MemberResult:
        def on_epoch(name: str, report: EpochReport) -> None:
            self._reports.tell.remote(name, report)

        return make_member(job, on_epoch)


class _Reports:
    """Between the makers and the driver."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, EpochReport]] = []

    def tell(self, name: str, report: EpochReport) -> None:
        self._waiting.append((name, report))

    def take(self) -> list[tuple[str, EpochReport]]:
        taken, self._waiting = self._waiting, []
        return taken


class _Pool:
    def __init__(self, jobs: Sequence[MemberJob], config: ClusterConfig) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        self._config = config
        self._waiting = deque((job, 0) for job in jobs)
        # Beside the driver: reports are not lost with another machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        reports = ray.remote(num_cpus=0, max_restarts=-1)(_Reports)
        self._reports = reports.options(scheduling_strategy=here).remote()
        self._maker = ray.remote(num_cpus=config.cpus_per_member, num_gpus=config.gpus_per_member)(_Maker)
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, MemberJob, int]] = {}
        self._unplaced: dict[Any, Any] = {}
        self._placed_at = time.monotonic()

    def run(self, on_epoch: OnEpoch, on_idle: Callable[[], None]) -> Iterator[MemberResult]:
        ray = self._ray
        try:
            while self._waiting or self._running:
                self._assign()
                done, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_SECONDS)
                for name, report in self._take_reports():
                    on_epoch(name, report)
                on_idle()
                for ref in done:
                    result = self._ended(ref)
                    if result is not None:
                        yield result
                self._require_room()
        finally:
            for maker in [*self._idle, *(maker for maker, _, _ in self._running.values())]:
                ray.kill(maker)
            ray.kill(self._reports)

    def _take_reports(self) -> list[tuple[str, EpochReport]]:
        try:
            taken: list[tuple[str, EpochReport]] = self._ray.get(self._reports.take.remote())
            return taken
        except self._ray.exceptions.RayActorError as error:
            # They are shown, nothing depends on them; Ray starts their process again.
            logger.warning("reports of epochs are out of reach for a moment: %s", type(error).__name__)
            return []

    def _assign(self) -> None:
        """Give waiting members to makers, and resources of makers without a member back to Ray."""
        slots = self._config.slots
        while self._waiting and (self._idle or slots is None or len(self._running) < slots):
            # Without a limit there are makers that wait for a machine; a cluster that grows sees them.
            maker = self._idle.pop() if self._idle else self._new()
            job, tries = self._waiting.popleft()
            self._running[maker.make.remote(job)] = (maker, job, tries)
        while self._idle and not self._waiting:
            self._ray.kill(self._idle.pop())

    def _require_room(self) -> None:
        """End the build when for too long no machine had room for any member.

        Raises:
            BuildError: there was none.
        """
        for ref in list(self._unplaced):
            if self._ray.wait([ref], timeout=0)[0]:
                del self._unplaced[ref]
        waiting = list(self._unplaced.values())
        if not self._running or any(maker not in waiting for maker, _, _ in self._running.values()):
            self._placed_at = time.monotonic()
        elif time.monotonic() - self._placed_at > self._config.wait_seconds:
            config = self._config
            raise BuildError(
                f"no machine had room for a member ({config.cpus_per_member:g} cores, "
                f"{config.gpus_per_member:g} GPUs) for {config.wait_seconds / 60:.3g} minutes; see "
                "`ray status` for why none is there. The same command goes on; --wait sets the time"
            )

    def _ended(self, ref: Any) -> MemberResult | None:
        maker, job, tries = self._running.pop(ref)
        try:
            result: MemberResult = self._ray.get(ref)
            self._idle.append(maker)
        except self._ray.exceptions.RayActorError as error:
            # It may only be out of reach, and must not train beside its successor.
            self._ray.kill(maker)
            if tries < self._config.max_restarts:
                logger.warning("the process of member %s died; going on with it", job.member.name)
                self._waiting.appendleft((job, tries + 1))
                return None
            result = _failed(job, f"its process died {tries + 1} times: {error}")
        except self._ray.exceptions.RayTaskError as error:
            # A bug of ours is no reason to lose the members that work.
            self._idle.append(maker)
            result = _failed(job, f"{type(error.cause).__name__}: {error.cause}")
        return result

    def _new(self) -> Any:
        maker = self._maker.remote(self._reports)
        self._unplaced[maker.ready.remote()] = maker
        return maker


def _failed(job: MemberJob, error: str) -> MemberResult:
    return MemberResult(name=job.member.name, outcome=Outcome.FAILED, error=error)


def _one_after_another(
    jobs: Sequence[MemberJob], on_epoch: OnEpoch, config: ClusterConfig
) -> Iterator[MemberResult]:
    from training.cluster import train_on_cluster

    def train(job: MemberJob, on_epoch: OnEpoch) -> RunResult:
        def tell(report: EpochReport) -> bool:
            on_epoch(job.member.name, report)
            return True

        return train_on_cluster(
            job.member.spec,
            [Path(job.store)],
            job.folder,
            workers=config.workers,
            gpus_per_worker=int(config.gpus_per_member),
            cpus_per_worker=max(int(config.cpus_per_member), 1),
            on_epoch=tell,
            max_failures=config.max_restarts,
        )

    # Where the driver runs may have no GPU to predict on.
    one = replace(config, slots=1, workers=1)
    for job in jobs:
        result = train_member(job, on_epoch, train=train)
        if result.is_usable:
            yield from _Pool([job], one).run(on_epoch, lambda: None)
        else:
            yield result
