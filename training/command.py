"""What ``training/train.py`` does once its command line is read."""

import argparse
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from data.command_line import FAILED, INTERRUPTED, MISUSED
from data.confined import require_name
from data.recording import Recording
from data.sources import open_recordings
from training.console import RunDisplay, forecast_table, result_table
from training.forecast import forecast
from training.material import SelectOn
from training.names import with_values
from training.ranks import Ranks, leave_processes, start_torchrun
from training.recipes import recipe
from training.reporter import Reporter, run_tags
from training.results import EpochReport, Outcome, RunResult
from training.run import result_plain, run
from training.run_folder import read_json, write_json
from training.spec import RunSpec, from_plain, to_plain
from training.tracking import Tracker, default_tracking_uri, prepare_store, sync

logger = logging.getLogger(__name__)


PLAN_FILE, RESULT_FILE = "run.json", "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A run as its folder remembers it: enough to go on with ``--resume`` alone."""

    folder: Path
    spec: RunSpec
    sources: tuple[Path, ...]
    select_on: SelectOn
    uid: str

    @property
    def tracked_id(self) -> str:
        # A folder removed and a run of the same name started again is another run in MLflow.
        return f"{self.folder.name}-{self.uid}"

    def plain(self) -> dict[str, object]:
        return {
            "spec": to_plain(self.spec),
            "recordings": [str(source) for source in self.sources],
            "select_on": self.select_on,
            "uid": self.uid,
        }

    @classmethod
    def read(cls, folder: Path) -> "_Plan":
        plain = read_json(folder / PLAN_FILE)
        return cls(
            folder=folder,
            spec=from_plain(plain["spec"]),
            sources=tuple(Path(source) for source in plain["recordings"]),
            select_on=plain["select_on"],
            uid=plain["uid"],
        )


def run_command(parsed: argparse.Namespace) -> int:
    """Run one training run from parsed arguments; return the exit code."""
    # MLflow's HTTP library repeats every failed attempt; the tracker says it once.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if parsed.sync_tracking:
        return _sync(parsed.runs, Console(soft_wrap=True))
    start_torchrun()
    ranks = Ranks.current()
    console = Console(soft_wrap=True, quiet=not ranks.is_first)
    if not ranks.is_first:
        logging.getLogger().setLevel(logging.WARNING)
    try:
        return _command(parsed, console, ranks)
    except KeyboardInterrupt:
        console.print("interrupted; finished epochs are kept, and the same command goes on", highlight=False)
        return INTERRUPTED
    finally:
        leave_processes()


def _command(parsed: argparse.Namespace, console: Console, ranks: Ranks) -> int:
    try:
        if parsed.workers is not None and ranks.world_size > 1:
            raise ValueError("--workers starts processes on Ray, but torchrun has already started some")
        plan = _plan(parsed)
        recordings = open_recordings(plan.sources, cache=parsed.cache or parsed.runs / "cache")
        if parsed.dry_run:
            console.print(forecast_table(plan.spec, forecast(plan.spec, recordings)))
            return 0
        if ranks.is_first:
            write_json(plan.folder / PLAN_FILE, plan.plain())
        result = _train(parsed, plan, recordings, console=console, ranks=ranks)
    except (ValueError, FileNotFoundError) as error:
        console.print(f"error: {error}", style="red", highlight=False)
        return MISUSED
    except OSError as error:
        console.print(f"error: the run cannot be kept: {error}", style="red", highlight=False)
        return FAILED
    console.print(result_table(result))
    return 0 if result.outcome in (Outcome.FINISHED, Outcome.PRUNED) else FAILED


def _plan(parsed: argparse.Namespace) -> _Plan:
    if parsed.resume is not None:
        return _Plan.read(parsed.resume)
    spec = with_values(recipe(parsed.model, scale=parsed.scale), _settings(parsed.set))
    if parsed.seed is not None:
        spec = replace(spec, seed=parsed.seed)
    name = parsed.name or f"{parsed.model}-{spec.seed}"
    folder = parsed.runs / require_name(name, what="--name")
    plan = _Plan(
        folder=folder,
        spec=spec,
        sources=tuple(source.resolve() for source in parsed.recordings),
        select_on=parsed.select_on,
        uid=secrets.token_hex(4),
    )
    if not (folder / PLAN_FILE).exists():
        return plan
    known = _Plan.read(folder)
    if replace(plan, uid=known.uid) != known:
        raise ValueError(
            f"{folder} holds another run: choose another --name, or --resume {folder} to go on with that one"
        )
    return known


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ValueError(f"--set is {pair!r}, but must be NAME=VALUE, such as model.spatial_depth=3")
        settings[name] = value
    return settings


def _train(
    parsed: argparse.Namespace,
    plan: _Plan,
    recordings: Sequence[Recording],
    *,
    console: Console,
    ranks: Ranks,
) -> RunResult:
    """Train; the first process (with Ray: this one, which does not train) shows and tracks the run."""
    if not ranks.is_first:
        return run(plan.spec, recordings, plan.folder, ranks=ranks, select_on=plan.select_on)
    reporter = None if parsed.no_tracking else _reporter(parsed, plan, recordings)
    try:
        result = _train_here_or_on_ray(parsed, plan, recordings, reporter, console=console, ranks=ranks)
    except BaseException as error:
        if reporter is not None:
            reporter.abandon(error)
        raise
    try:
        write_json(plan.folder / RESULT_FILE, result_plain(result))
    except OSError as error:
        logger.warning("%s could not be written: %s", plan.folder / RESULT_FILE, error)
    if reporter is not None and not reporter.finish(result):
        console.print(
            f"not everything reached MLflow; it is kept in {plan.folder}. To send it later: "
            f"python training/train.py --sync-tracking --runs {parsed.runs}",
            highlight=False,
        )
    return result


def _train_here_or_on_ray(
    parsed: argparse.Namespace,
    plan: _Plan,
    recordings: Sequence[Recording],
    reporter: Reporter | None,
    *,
    console: Console,
    ranks: Ranks,
) -> RunResult:
    with RunDisplay(console, epochs=plan.spec.epochs) as display:

        def on_epoch(report: EpochReport) -> bool:
            display.epoch(report)
            if reporter is not None:
                reporter.epoch(report)
            return True

        if parsed.workers is None:
            return run(
                plan.spec,
                recordings,
                plan.folder,
                on_epoch=on_epoch,
                on_step=display.step,
                ranks=ranks,
                select_on=plan.select_on,
            )
        # Seconds of import, which only a run on Ray needs.
        from training.cluster import train_on_cluster

        gpus = parsed.gpus_per_worker
        if gpus is None:
            gpus = int(torch.cuda.is_available())
        return train_on_cluster(
            plan.spec,
            [recordings[0].store],
            plan.folder,
            workers=parsed.workers,
            gpus_per_worker=gpus,
            cpus_per_worker=1 if gpus else max((os.cpu_count() or 1) // max(parsed.workers, 1), 1),
            on_epoch=on_epoch,
            wait_seconds=parsed.wait_seconds,
            select_on=plan.select_on,
        )


def _reporter(parsed: argparse.Namespace, plan: _Plan, recordings: Sequence[Recording]) -> Reporter:
    uri = default_tracking_uri(parsed.runs)
    if uri.startswith("sqlite"):
        prepare_store(uri, experiment=parsed.experiment)
    tracker = Tracker(plan.folder, uri=uri, experiment=parsed.experiment, run_id=plan.tracked_id)
    reporter = Reporter(tracker, plan.folder)
    tags = run_tags(plan.spec, recordings) | {"select_on": plan.select_on}
    reporter.start(plan.spec, tags=tags | ({"workers": str(parsed.workers)} if parsed.workers else {}))
    return reporter


def _sync(runs: Path, console: Console) -> int:
    sent, failed = sync(runs)
    console.print(f"{sent} events sent; {failed} runs could not be reached", highlight=False)
    return FAILED if failed else 0
