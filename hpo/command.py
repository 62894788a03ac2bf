"""What ``hpo/search.py`` does once its command line is read."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from data.command_line import FAILED, INTERRUPTED, MISUSED
from data.given import given_recordings
from data.recording import Recording
from hpo.ceiling import keep_ceiling
from hpo.confirmation import confirmation_folder, confirmed, open_confirmation
from hpo.driver import Driver, Limits
from hpo.dry_run import show_plan
from hpo.execution import ASKED, Execution, close_mirror
from hpo.identity import StudyError, is_outdated
from hpo.plan import SearchPlan, make_plan
from hpo.report import write_report
from hpo.reproduction import describe_environment
from hpo.study import Study, lock_study, read_trials
from hpo.summary import confirmation_table, summarize, write_rows
from hpo.warm_start import enqueue_best
from training.tracking import default_tracking_uri

logger = logging.getLogger(__name__)


def search_command(parsed: argparse.Namespace) -> int:
    """Search as the parsed arguments say; return the exit code."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    console = Console()
    uri = default_tracking_uri(parsed.root)
    try:
        plan = make_plan(parsed)
        recordings, source = given_recordings(parsed.recordings, parsed.root)
        if parsed.dry_run:
            print_header(console, plan, recordings, source=source, uri=uri)
            show_plan(plan, recordings, console, keep=parsed.keep)
            return 0
        is_nobodys = parsed.recordings is None and parsed.name is None
        if parsed.fresh:
            _archive(plan.folder, console, what="the old study")
        elif is_nobodys and is_outdated(plan.folder, plan.identity(recordings)):
            _archive(plan.folder, console, what="the study that an earlier version of the code made")
        study = _open(plan, recordings)
    except (ValueError, OSError) as error:
        print_error(console, error)
        return MISUSED
    try:
        print_header(console, plan, recordings, source=source, uri=uri)
        execution = Execution(
            recordings=recordings,
            select_on=plan.select_on,
            cluster=plan.cluster,
            keep=parsed.keep,
            tracking_uri=None if parsed.no_tracking else uri,
            tags={"select_on": plan.select_on, "scale": plan.scale, "pruner": plan.pruning.pruner},
        )
        return _search(parsed, plan, study, execution, console=console)
    except KeyboardInterrupt:
        console.print("stopped at once; nothing that was reported is lost. The same command goes on.")
        return INTERRUPTED
    except StudyError as error:
        print_error(console, error)
        return FAILED
    finally:
        study.close()


def _open(plan: SearchPlan, recordings: Sequence[Recording]) -> Study:
    return Study(
        plan.folder,
        plan.plan.space,
        bounds=plan.bounds,
        pruning=plan.pruning,
        seed=plan.seed,
        identity=plan.identity(recordings),
        sampler=plan.sampler,
        made_with=describe_environment(plan.cluster, recordings),
    )


def _search(
    parsed: argparse.Namespace, plan: SearchPlan, study: Study, execution: Execution, *, console: Console
) -> int:
    _enqueue(parsed, plan, study, console)
    keep_ceiling(study.folder, execution.recordings)
    driver, mirror = execution.drive(study, plan.limits, console)
    table = write_rows(study.trials(), study.folder / "runs.csv")
    artifacts = [table, *_write_report(study.folder)]
    close_mirror(mirror, artifacts, finished=driver.stopping is None)
    summarize(study, console, files=artifacts, root=parsed.root)
    if driver.stopping is None and parsed.confirm and study.best() is not None:
        driver = _confirm(parsed, study, execution, console=console)
    if confirmation_folder(study.folder).exists():
        again = read_trials(confirmation_folder(study.folder))
        console.print(confirmation_table(confirmed(study.trials(), again)))
    return _exit_code(driver, study, console)


def _enqueue(parsed: argparse.Namespace, plan: SearchPlan, study: Study, console: Console) -> None:
    """Let known good runs be the first, once in the life of the study."""
    if study.is_new and parsed.from_paper:
        study.enqueue(plan.plan.published)
    if parsed.from_study is not None:
        start = enqueue_best(study, parsed.root / "studies" / parsed.from_study)
        taken = ", ".join(map(str, start.taken)) or "none"
        console.print(f"from study  {parsed.from_study}: runs {taken}", highlight=False, markup=False)
        for reason in start.refused:
            console.print(f"            not {reason}", highlight=False, markup=False, soft_wrap=True)


def _confirm(parsed: argparse.Namespace, study: Study, execution: Execution, *, console: Console) -> Driver:
    confirmation, total = open_confirmation(study, top=parsed.confirm, seeds=parsed.confirm_seeds)
    try:
        console.print(
            f"confirming the best {parsed.confirm} runs with {parsed.confirm_seeds} further seeds each",
            highlight=False,
        )
        driver, mirror = execution.drive(confirmation, Limits(runs=total), console)
        # Again: now it tells of these runs, too.
        close_mirror(mirror, _write_report(study.folder), finished=driver.stopping is None)
        return driver
    finally:
        confirmation.close()


def _exit_code(driver: Driver, study: Study, console: Console) -> int:
    if driver.stopping is None:
        return 0 if study.best() is not None else FAILED
    console.print(f"ended early: {driver.stopping}. The same command goes on.", highlight=False)
    if driver.stopping == ASKED:
        return INTERRUPTED
    return FAILED if "failed" in driver.stopping else 0


def _write_report(folder: Path) -> list[Path]:
    try:
        return [write_report(folder)]
    except Exception as error:
        # A search that took days must not fail by a picture of it.
        logger.warning("the report could not be written: %s", error)
        return []


def _archive(folder: Path, console: Console, *, what: str) -> None:
    if not folder.exists():
        return
    archive = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    lock = lock_study(folder)
    try:
        folder.rename(archive)
    finally:
        lock.close()
    console.print(f"{what} is now {archive}; this one starts anew", highlight=False, soft_wrap=True)


def print_error(console: Console, error: Exception) -> None:
    """Print an error in one line."""
    console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def print_header(
    console: Console, plan: SearchPlan, recordings: Sequence[Recording], *, source: str, uri: str
) -> None:
    """Print what is searched, on what, where."""
    neurons = sum(len(recording.neurons.ids) for recording in recordings)
    cluster, pruning = plan.cluster, plan.pruning
    unit, count = (
        ("GPU", cluster.gpus_per_worker) if cluster.gpus_per_worker > 0 else ("core", cluster.cpus_per_worker)
    )
    workers = f", {cluster.workers_per_run} workers per run" if cluster.workers_per_run > 1 else ""
    chosen = (
        "" if plan.select_on == "holdout" else "; chosen on oracle as in the paper: oracle does not grade"
    )
    lines = (
        f"space       {plan.plan.space.name}, {len(plan.plan.ranges)} hyperparameters, "
        f"{plan.scale} scale{chosen}",
        f"recordings  {len(recordings)} mice, {neurons} neurons; {source}",
        f"runs        {plan.limits.runs} in all, {cluster.slots} at a time, on {count:g} {unit} "
        f"each{workers}; {pruning.pruner}, {pruning.min_epochs} to {pruning.max_epochs} epochs",
        f"lane        {plan.lane.lane}: {plan.lane.reason}",
        f"study       {plan.folder}",
        f"mlflow      {uri}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
