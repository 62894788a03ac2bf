"""What can be asked of a study afterwards: its report, and any of its runs again."""

import argparse
import logging
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.command_line import FAILED, MISUSED
from hpo.command import print_error
from hpo.reproduction import TOLERANCE, Reproduction, find_run, largest_difference, make_again
from hpo.study import read_trials
from training.recipes import recipe
from training.results import EpochReport, RunResult
from training.run_folder import write_json
from training.spec import to_plain


def report_command(parsed: argparse.Namespace) -> int:
    """Write a study's report, also while it is searched; return the exit code."""
    # Seconds of import that no other command needs.
    from hpo.report import write_report

    console = Console()
    folder = study_folder(parsed)
    try:
        read_trials(folder)
        path = write_report(folder, parsed.out)
    except (ValueError, OSError) as error:
        print_error(console, error)
        return MISUSED
    console.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def reproduce_command(parsed: argparse.Namespace) -> int:
    """Make a run again and compare; the exit code is 0 when the scores are the same."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    console = Console()
    folder = study_folder(parsed)
    try:
        found = find_run(folder, parsed.run, sources=parsed.recordings, cache=parsed.root / "cache")
    except (ValueError, OSError) as error:
        print_error(console, error)
        return MISUSED
    _describe(found, console)
    again: dict[int, float] = {}

    def on_epoch(report: EpochReport) -> None:
        again[report.epoch] = report.score
        then = found.curve.get(report.epoch)
        shown = "-" if then is None else f"{then:.6f}"
        console.print(f"epoch {report.epoch:>3}  then {shown}  now {report.score:.6f}", highlight=False)

    target = folder / "reproduced" / f"{found.number:04d}-{os.getpid()}"
    result = make_again(found, target, on_epoch=on_epoch)
    write_json(target / "spec.json", to_plain(found.spec))
    return _compare(found, again, result, target, console)


def study_folder(parsed: argparse.Namespace) -> Path:
    """Return the folder of a study given by name or by path."""
    given = Path(parsed.study)
    return given if given.is_dir() else parsed.root / "studies" / parsed.study


def _describe(found: Reproduction, console: Console) -> None:
    published = to_plain(recipe(found.spec.family))["values"]
    values = to_plain(found.spec)["values"]
    table = Table(title=f"run {found.number}, {found.spec.family}", title_justify="left")
    table.add_column("hyperparameter")
    table.add_column("value")
    table.add_column("published")
    for name, value in values.items():
        if value != published.get(name):
            table.add_row(name, str(value), str(published.get(name)))
    console.print(table)
    lines = [
        f"seed        {found.spec.seed}",
        f"processes   {found.workers} with {found.threads} threads each",
        f"recordings  {found.recordings[0].store}",
        f"made with   {', '.join(f'{name} {version}' for name, version in found.then.items())}",
        *(f"differs     {note}" for note in found.notes),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _compare(
    found: Reproduction, again: dict[int, float], result: RunResult, folder: Path, console: Console
) -> int:
    difference = largest_difference(found.curve, again)
    same_end = str(result.outcome) == found.outcome or found.outcome == "running"
    console.print(
        f"then {found.outcome}, now {result.outcome}; scores differ by at most {difference:.2g}; {folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if difference <= TOLERANCE and same_end:
        console.print("the same")
        return 0
    console.print("NOT the same" + ("" if result.error is None else f": {result.error}"), markup=False)
    return FAILED
