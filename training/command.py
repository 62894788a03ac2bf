"""What ``training/train.py`` does once its command line is read."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from data.recording import Recording
from data.sources import open_recordings
from training.console import RunDisplay, result_table
from training.names import with_values
from training.ranks import Ranks, leave_processes, start_torchrun
from training.recipes import recipe
from training.reporter import Reporter, run_tags
from training.results import EpochReport, Outcome, RunResult
from training.run import result_plain, run
from training.run_folder import read_json, write_json
from training.spec import RunSpec, from_plain, to_plain
from training.tracking import Tracker, default_tracking_uri, prepare_store, sync

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
PLAN_FILE, RESULT_FILE = "run.json", "result.json"


def run_command(parsed: argparse.Namespace) -> int:
    """Run one training run from parsed arguments; return the exit code."""
    # MLflow's HTTP library repeats every failed attempt; the tracker says it once.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    console = Console()
    if parsed.sync_tracking:
        return _sync(parsed.runs, console)
    start_torchrun()
    ranks = Ranks.current()
    try:
        folder, spec, sources = _plan(parsed)
        recordings = open_recordings(sources, cache=parsed.cache or parsed.runs / "cache")
    except (ValueError, FileNotFoundError) as error:
        console.print(f"error: {error}", style="red", highlight=False)
        return MISUSED
    try:
        result = _run(parsed, spec, recordings, folder=folder, console=console, ranks=ranks)
    except KeyboardInterrupt:
        console.print(
            f"interrupted; finished epochs are kept. To go on: python training/train.py --resume {folder}",
            highlight=False,
        )
        return INTERRUPTED
    if ranks.is_first:
        write_json(folder / RESULT_FILE, result_plain(result))
        console.print(result_table(result))
    leave_processes()
    return 0 if result.outcome in (Outcome.FINISHED, Outcome.PRUNED) else FAILED


def _plan(parsed: argparse.Namespace) -> tuple[Path, RunSpec, list[Path]]:
    if parsed.resume is not None:
        plan = read_json(parsed.resume / PLAN_FILE)
        return parsed.resume, from_plain(plan["spec"]), [Path(source) for source in plan["recordings"]]
    spec = with_values(recipe(parsed.model, scale=parsed.scale), _settings(parsed.set))
    if parsed.seed is not None:
        spec = replace(spec, seed=parsed.seed)
    folder = parsed.runs / (parsed.name or f"{parsed.model}-{spec.seed}")
    sources = [source.resolve() for source in parsed.recordings]
    plan = {"spec": to_plain(spec), "recordings": [str(source) for source in sources]}
    if (folder / PLAN_FILE).exists() and read_json(folder / PLAN_FILE) != plan:
        raise ValueError(
            f"{folder} holds another run: choose another --name, or --resume {folder} to go on with that one"
        )
    write_json(folder / PLAN_FILE, plan)
    return folder, spec, sources


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ValueError(f"--set is {pair!r}, but must be NAME=VALUE, such as model.spatial_depth=3")
        settings[name] = value
    return settings


def _run(
    parsed: argparse.Namespace,
    spec: RunSpec,
    recordings: Sequence[Recording],
    *,
    folder: Path,
    console: Console,
    ranks: Ranks,
) -> RunResult:
    if not ranks.is_first:
        return run(spec, recordings, folder, ranks=ranks, select_on=parsed.select_on)
    reporter = _reporter(parsed, spec, recordings, folder)
    with RunDisplay(console, epochs=spec.epochs) as display:

        def on_epoch(report: EpochReport) -> bool:
            display.epoch(report)
            if reporter is not None:
                reporter.epoch(report)
            return True

        result = run(
            spec,
            recordings,
            folder,
            on_epoch=on_epoch,
            on_step=display.step,
            ranks=ranks,
            select_on=parsed.select_on,
        )
    if reporter is not None and not reporter.finish(result):
        console.print(
            f"not everything reached MLflow; it is kept in {folder}. To send it later: "
            f"python training/train.py --sync-tracking --runs {parsed.runs}",
            highlight=False,
        )
    return result


def _reporter(
    parsed: argparse.Namespace, spec: RunSpec, recordings: Sequence[Recording], folder: Path
) -> Reporter | None:
    if parsed.no_tracking:
        return None
    uri = default_tracking_uri(parsed.runs)
    if uri.startswith("sqlite"):
        prepare_store(uri, experiment=parsed.experiment)
    tracker = Tracker(folder, uri=uri, experiment=parsed.experiment, run_id=folder.name)
    reporter = Reporter(tracker, folder)
    reporter.start(spec, tags=run_tags(spec, recordings) | {"select_on": parsed.select_on})
    return reporter


def _sync(runs: Path, console: Console) -> int:
    sent, failed = sync(runs)
    console.print(f"{sent} events sent; {failed} runs could not be reached", highlight=False)
    return FAILED if failed else 0
