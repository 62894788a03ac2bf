"""What ``hpo/search.py`` does once its command line is read."""

import argparse
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from data.recording import Recording
from hpo.checkpoints import CheckpointKeeper
from hpo.cluster import run_on_ray
from hpo.display import SearchDisplay
from hpo.driver import Driver, Observer
from hpo.feasibility import Feasibility, available_bytes
from hpo.identity import StudyError
from hpo.mirror import Mirror
from hpo.objective import make_objective
from hpo.plan import SearchPlan, find_recordings, make_plan
from hpo.study import Study
from hpo.summary import summarize, write_table
from training.tracking import default_tracking_uri, prepare_store

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def search_command(parsed: argparse.Namespace) -> int:
    """Search as the parsed arguments say; return the exit code."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    console = Console()
    try:
        plan = make_plan(parsed)
        if parsed.fresh:
            _archive(plan.folder, console)
        recordings, source = find_recordings(parsed.recordings, parsed.root)
        study = Study(
            plan.folder,
            plan.plan.space,
            bounds=plan.bounds,
            pruning=plan.pruning,
            seed=plan.seed,
            identity=plan.identity(recordings),
            sampler=plan.sampler,
        )
    except (ValueError, OSError) as error:
        _print_error(console, error)
        return MISUSED
    uri = default_tracking_uri(parsed.root)
    try:
        _print_header(console, plan, recordings, source=source, uri=uri)
        if study.is_new:
            study.enqueue(plan.plan.published)
        return _search(plan, study, recordings, console=console, uri=None if parsed.no_tracking else uri)
    except KeyboardInterrupt:
        console.print("stopped at once; nothing that was reported is lost. The same command goes on.")
        return INTERRUPTED
    except StudyError as error:
        _print_error(console, error)
        return FAILED
    finally:
        study.close()


def _search(
    plan: SearchPlan, study: Study, recordings: Sequence[Recording], *, console: Console, uri: str | None
) -> int:
    keeper = CheckpointKeeper(study)
    observers: list[Observer] = [keeper]
    mirror = None
    if uri is not None:
        # Two processes that create a SQLite store at the same time break it; the driver does it first.
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        if uri.startswith("sqlite"):
            prepare_store(uri, experiment=study.space.name)
        tags = {"select_on": plan.select_on, "scale": plan.scale, "pruner": plan.pruning.pruner}
        mirror = Mirror(study, recordings, uri=uri, uid=study.uid, tags=tags)
        observers.append(mirror)
    cluster = plan.cluster
    memory = available_bytes(
        gpus_per_run=cluster.gpus_per_worker, slots=cluster.slots * cluster.workers_per_run
    )
    display = SearchDisplay(study, console, plan.limits)
    driver = Driver(
        study,
        plan.limits,
        observers=[*observers, display],
        check=Feasibility.of(recordings, memory_bytes=memory),
    )
    objective = make_objective(cluster, recordings, select_on=plan.select_on, memory_bytes=memory)
    with display, _stopping_gracefully(driver, console):
        run_on_ray(driver, objective, cluster, on_idle=display.refresh)
    keeper.tidy()
    table = write_table(study)
    if mirror is not None:
        mirror.close([table], finished=driver.stopping is None)
    summarize(study, console, table=table)
    if driver.stopping is not None:
        console.print(f"ended early: {driver.stopping}. The same command goes on.", highlight=False)
        return INTERRUPTED if driver.stopping == _ASKED else FAILED if "failed" in driver.stopping else 0
    return 0 if study.best() is not None else FAILED


_ASKED = "you asked for it"


@contextmanager
def _stopping_gracefully(driver: Driver, console: Console) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) stop at the end of the running epochs, the second at once."""

    def on_signal(_number: int, _frame: object) -> None:
        if driver.stopping is not None:
            raise KeyboardInterrupt
        driver.stop(_ASKED)
        console.print("stopping when the running epochs end; press Ctrl-C again to stop at once")

    before = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _archive(folder: Path, console: Console) -> None:
    if not folder.exists():
        return
    archive = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    folder.rename(archive)
    console.print(f"the old study is now {archive}", highlight=False, soft_wrap=True)


def _print_error(console: Console, error: Exception) -> None:
    console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def _print_header(
    console: Console, plan: SearchPlan, recordings: Sequence[Recording], *, source: str, uri: str
) -> None:
    neurons = sum(len(recording.neurons.ids) for recording in recordings)
    cluster, pruning = plan.cluster, plan.pruning
    unit, count = (
        ("GPU", cluster.gpus_per_worker) if cluster.gpus_per_worker > 0 else ("core", cluster.cpus_per_worker)
    )
    each = f"{count:g} {unit} each" + (
        f", {cluster.workers_per_run} workers per run" if cluster.workers_per_run > 1 else ""
    )
    chosen = (
        "" if plan.select_on == "holdout" else "; chosen on oracle as in the paper: oracle does not grade"
    )
    lines = (
        f"space       {plan.plan.space.name}, {len(plan.plan.ranges)} hyperparameters, "
        f"{plan.scale} scale{chosen}",
        f"recordings  {len(recordings)} mice, {neurons} neurons; {source}",
        f"runs        {plan.limits.runs} in all, {cluster.slots} at a time, on {each}; "
        f"{pruning.pruner}, {pruning.min_epochs} to {pruning.max_epochs} epochs",
        f"lane        {plan.lane.lane}: {plan.lane.reason}",
        f"study       {plan.folder}",
        f"mlflow      {uri}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
