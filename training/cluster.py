"""One run on several processes of a Ray cluster (Ray Train); the only module of training that knows Ray.

Workers open the recordings by path and write checkpoints into the run's folder, which all machines must
reach. The first worker tells the driver about every epoch and hears from it whether to go on; the driver
alone tracks. A worker that dies costs the epoch it was in: Ray Train starts all of them again, and they go
on from the run's folder, exactly as a single process does.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Ray Train reads these when it is imported. Its controller asks workers for news every 2 s by default, which
# every start and end of a run would wait for; its watcher of preempted machines fails loudly without a cloud;
# and it tries for 60 s to start workers before it counts that as a failure, too coarse for ``wait_seconds``.
_START_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_SETTINGS = {
    _START_SECONDS: "20",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402 - after its settings
import ray.train  # noqa: E402
from ray.train.torch import TorchTrainer  # noqa: E402

from data.sources import open_recordings  # noqa: E402
from training.material import SelectOn  # noqa: E402
from training.nodes import former_sigterm, require_shared  # noqa: E402
from training.ranks import Ranks  # noqa: E402
from training.results import EpochReport, Outcome, RunResult  # noqa: E402
from training.run import run  # noqa: E402
from training.spec import RunSpec, from_plain, to_plain  # noqa: E402

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    spec: dict[str, Any]
    sources: tuple[str, ...]
    cache: str | None
    folder: str
    select_on: SelectOn
    mailbox: Any


class _Mailbox:
    """Between the first worker and the driver; lives through the death of workers."""

    def __init__(self) -> None:
        self._reports: list[EpochReport] = []
        self._answers: dict[int, bool] = {}
        self._result: RunResult | None = None

    def tell(self, report: EpochReport) -> None:
        self._answers.pop(report.epoch, None)
        self._reports.append(report)

    def answer_to(self, epoch: int) -> bool | None:
        return self._answers.get(epoch)

    def take_reports(self) -> list[EpochReport]:
        reports, self._reports = self._reports, []
        return reports

    def answer(self, epoch: int, go_on: bool) -> None:
        self._answers[epoch] = go_on

    def end(self, result: RunResult) -> None:
        self._result = result

    def result(self) -> RunResult | None:
        return self._result


def train_on_cluster(
    spec: RunSpec,
    sources: Sequence[Path],
    folder: Path,
    *,
    workers: int,
    gpus_per_worker: int = 0,
    cpus_per_worker: int = 1,
    on_epoch: Callable[[EpochReport], bool] = lambda _: True,
    max_failures: int = 3,
    wait_seconds: float = 600.0,
    cache: Path | None = None,
    select_on: SelectOn = "holdout",
) -> RunResult:
    """Train a run on the workers of a Ray cluster; what ``training.run.run`` does on one process.

    Args:
        spec: what to run.
        sources: paths of the recordings, the same on every machine.
        folder: the run's folder, on storage that every machine reaches; its name is the run's name.
        workers: processes that share each batch.
        gpus_per_worker: GPUs of each; 0 computes on CPUs.
        cpus_per_worker: cores of each.
        on_epoch: called here, in a thread, after each epoch; answers whether to go on. An epoch that a dying
            worker had reported but not finished saving comes again.
        max_failures: times that lost workers are replaced.
        wait_seconds: how long the run waits in all until the cluster has room for its workers, at the start
            and after losses; then it has failed, and what it has trained is kept. Longer than a machine takes
            to boot where the cluster grows on demand.
        cache: for converted recordings.
        select_on: what scores of epochs look at.

    Raises:
        ValueError: there are fewer than one worker, nothing may be waited for, this machine alone has too
            little for them, or a machine does not reach the folder.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}, but must be at least 1")
    if not wait_seconds > 0:
        raise ValueError(f"wait_seconds is {wait_seconds}, but must be above 0")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _connect()
    require_shared(folder, sources)
    _require_resources(workers, cpus=cpus_per_worker, gpus=gpus_per_worker)
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    job = _Job(
        spec=to_plain(spec),
        sources=tuple(str(source.resolve()) for source in sources),
        cache=None if cache is None else str(cache.resolve()),
        folder=str(folder),
        select_on=select_on,
        mailbox=mailbox,
    )
    resources: dict[str, float] = {"CPU": cpus_per_worker}
    if gpus_per_worker:
        resources["GPU"] = gpus_per_worker
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=max_failures, controller_failure_limit=_failed_starts(wait_seconds)
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with _Listener(mailbox, on_epoch):
            trainer.fit()
        result: RunResult | None = ray.get(mailbox.result.remote())
        error = "the workers ended without a result"
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as failure:
        result, error = None, f"{type(failure).__name__}: {failure}"
        # A class that Ray does not export.
        if type(getattr(failure, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
            error = _no_room(workers, resources, wait_seconds=wait_seconds, folder=folder)
        logger.error("run %s failed: %s", folder.name, error)
    finally:
        ray.kill(mailbox)
    return _lost(spec, folder, error) if result is None else replace(result, spec=spec)


def _train_worker(config: dict[str, Any]) -> None:
    job: _Job = config["job"]
    ranks = Ranks.current()
    recordings = open_recordings(
        [Path(source) for source in job.sources], cache=None if job.cache is None else Path(job.cache)
    )

    def on_epoch(report: EpochReport) -> bool:
        if not ranks.is_first:
            return True
        ray.get(job.mailbox.tell.remote(report))
        waiting = threading.Event()
        while (answer := ray.get(job.mailbox.answer_to.remote(report.epoch))) is None:
            waiting.wait(_POLL_SECONDS)
        return bool(answer)

    result = run(
        from_plain(job.spec),
        recordings,
        Path(job.folder),
        on_epoch=on_epoch,
        ranks=ranks,
        select_on=job.select_on,
    )
    if ranks.is_first:
        ray.get(job.mailbox.end.remote(result))


class _Listener:
    """Hands reports to the driver's ``on_epoch`` while ``TorchTrainer.fit`` occupies the main thread."""

    def __init__(self, mailbox: Any, on_epoch: Callable[[EpochReport], bool]) -> None:
        self._mailbox, self._on_epoch = mailbox, on_epoch
        self._ending = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._listen, name="epochs", daemon=True)

    def __enter__(self) -> "_Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _listen(self) -> None:
        while not self._ending.wait(_POLL_SECONDS):
            try:
                for report in ray.get(self._mailbox.take_reports.remote()):
                    go_on = self._error is None and self._on_epoch(report)
                    ray.get(self._mailbox.answer.remote(report.epoch, go_on))
            except ray.exceptions.RayError:
                return
            except Exception as error:
                # The workers are told to stop; the error is raised where the driver waits for them.
                self._error = error
                ray.get(self._mailbox.answer.remote(report.epoch, False))


def _connect() -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start one of this machine alone."""
    if not ray.is_initialized():
        with former_sigterm():
            ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)


def _require_resources(workers: int, *, cpus: int, gpus: int) -> None:
    if len(ray.nodes()) > 1 or os.environ.get("RAY_ADDRESS"):
        # A cluster may grow when it is asked for more.
        return
    have = ray.cluster_resources()
    for name, needed in (("CPU", workers * cpus), ("GPU", workers * gpus)):
        if needed > have.get(name, 0):
            raise ValueError(
                f"workers is {workers}, which takes {needed} {name}s, but this machine has "
                f"{have.get(name, 0):.0f}: use fewer workers, or set RAY_ADDRESS to a cluster"
            )


def _failed_starts(wait_seconds: float) -> int:
    """Return how many failed starts of workers are allowed: Ray Train limits their number, not the time."""
    return max(math.ceil(wait_seconds / float(os.environ[_START_SECONDS])) - 1, 0)


def _no_room(workers: int, resources: Mapping[str, float], *, wait_seconds: float, folder: Path) -> str:
    wanted = " and ".join(f"{amount:g} {name}s" for name, amount in resources.items())
    return (
        f"the cluster had no room for {workers} workers of {wanted} each within {wait_seconds:g} s: add "
        f"machines or use fewer workers; {folder} goes on where it ended"
    )


def _lost(spec: RunSpec, folder: Path, error: str) -> RunResult:
    return RunResult(
        run_id=folder.name,
        spec=spec,
        outcome=Outcome.FAILED,
        score=None,
        score_by_session={},
        epochs=0,
        seconds=0.0,
        checkpoint=None,
        error=error,
    )
