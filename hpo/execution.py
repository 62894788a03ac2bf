"""A study driven to its end: checkpoints kept, MLflow and terminal told, Ctrl-C obeyed."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data.recording import Recording
from hpo.checkpoints import CheckpointKeeper
from hpo.cluster import ClusterConfig, run_on_ray
from hpo.display import SearchDisplay
from hpo.driver import Driver, Limits, Observer
from hpo.feasibility import Feasibility, available_bytes
from hpo.mirror import Mirror
from hpo.objective import make_objective
from hpo.study import Study
from training.material import SelectOn
from training.tracking import prepare_store

ASKED = "you asked for it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a study is driven.

    Attributes:
        recordings: what runs are trained on.
        select_on: what their scores look at.
        cluster: where they execute.
        keep: so many of the best runs keep their checkpoints.
        tracking_uri: of MLflow; None does not mirror the study there.
        tags: of the study in MLflow.
    """

    recordings: Sequence[Recording]
    select_on: SelectOn
    cluster: ClusterConfig
    keep: int
    tracking_uri: str | None
    tags: Mapping[str, str]

    def drive(self, study: Study, limits: Limits, console: Console) -> tuple[Driver, Mirror | None]:
        """Make a study's runs until it ends, or is ended.

        Returns:
            The driver, which says why it stopped early, and the mirror, which is still open.
        """
        keeper = CheckpointKeeper(study, keep=self.keep)
        mirror = self._mirror(study)
        display = SearchDisplay(study, console, limits)
        observers: list[Observer] = [keeper, display] if mirror is None else [keeper, mirror, display]
        workers = self.cluster.slots * self.cluster.workers_per_run
        memory = available_bytes(gpus_per_run=self.cluster.gpus_per_worker, slots=workers)
        driver = Driver(
            study,
            limits,
            observers=observers,
            check=Feasibility.of(self.recordings, memory_bytes=memory),
        )
        objective = make_objective(
            self.cluster, self.recordings, select_on=self.select_on, memory_bytes=memory
        )
        with display, stopping_gracefully(driver, console):
            run_on_ray(driver, objective, self.cluster, on_idle=display.refresh)
        keeper.tidy()
        return driver, mirror

    def _mirror(self, study: Study) -> Mirror | None:
        if self.tracking_uri is None:
            return None
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        if self.tracking_uri.startswith("sqlite"):
            # Two processes that create a SQLite store at the same time break it; the driver does it first.
            prepare_store(self.tracking_uri, experiment=study.space.name)
        return Mirror(study, self.recordings, uri=self.tracking_uri, uid=study.uid, tags=self.tags)


@contextmanager
def stopping_gracefully(driver: Driver, console: Console) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) stop at the end of the running epochs, the second at once."""

    def on_signal(_number: int, _frame: object) -> None:
        if driver.stopping is not None:
            raise KeyboardInterrupt
        driver.stop(ASKED)
        console.print("stopping when the running epochs end; press Ctrl-C again to stop at once")

    before = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def close_mirror(mirror: Mirror | None, artifacts: Sequence[Path], *, finished: bool) -> None:
    """Show a study's files in MLflow and send what waits."""
    if mirror is not None:
        mirror.close(artifacts, finished=finished)
