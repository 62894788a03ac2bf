"""What ``hpo/search.py`` does once its command line is read."""

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from data.experiment import SimulationConfig
from data.recording import Recording
from data.simulation import simulate
from data.sources import open_recordings
from hpo.driver import Driver, plan_space
from hpo.space import Bounds
from hpo.spaces import SPACES
from hpo.study import PruningConfig, Study, StudyError
from hpo.summary import summarize
from training.names import nearest
from training.recipes import Scale, recipe
from training.spec import RunSpec, to_plain

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def search_command(parsed: argparse.Namespace) -> int:
    """Search as the parsed arguments say; return the exit code."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    console = Console()
    try:
        driver = _prepare(parsed, console)
    except (ValueError, FileNotFoundError) as error:
        console.print(f"error: {error}", style="red", highlight=False)
        return MISUSED
    try:
        driver.run(total=parsed.runs, minutes=parsed.time_budget)
    except KeyboardInterrupt:
        console.print(
            "interrupted; finished runs and epochs are kept. The same command goes on.", highlight=False
        )
        return INTERRUPTED
    except StudyError as error:
        console.print(f"error: {error}", style="red", highlight=False)
        return FAILED
    finally:
        driver.study.close()
    summarize(driver.study, console)
    return 0 if driver.study.best() is not None else FAILED


def _prepare(parsed: argparse.Namespace, console: Console) -> Driver:
    if parsed.space not in SPACES:
        raise ValueError(f"space is {parsed.space!r}{nearest(parsed.space, SPACES)}")
    scale: Scale = parsed.scale or ("full" if parsed.recordings else "demo")
    max_epochs = parsed.max_epochs or (9 if scale == "demo" else 60)
    pruning = PruningConfig(
        pruner=parsed.pruner,
        min_epochs=parsed.min_epochs or max(1, -(-max_epochs // 9)),
        max_epochs=max_epochs,
        reduction=parsed.reduction,
    )
    base = replace(recipe(parsed.space, scale=scale), epochs=max_epochs, seed=parsed.seed)
    bounds = Bounds(pinned=_pairs(parsed.set), narrowed=_ranges(parsed.narrow))
    space, published = plan_space(parsed.space, SPACES[parsed.space][scale], base, bounds)
    folder = parsed.root / "studies" / (parsed.name or f"{parsed.space}-{scale}")
    if parsed.fresh and folder.exists():
        archive = folder.with_name(f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(archive)
        console.print(f"the old study is now {archive}", highlight=False)
    recordings = _recordings(parsed, console)
    identity = {
        "space": [parsed.space, scale, *sorted(published)],
        "base": to_plain(space.base),
        "bounds": [dict(bounds.pinned), {name: list(pair) for name, pair in bounds.narrowed.items()}],
        "recordings": {recording.session: recording.fingerprint for recording in recordings},
        "select_on": parsed.select_on,
    }
    study = Study(folder, space, bounds=bounds, pruning=pruning, seed=parsed.seed, identity=identity)
    study.enqueue(published)
    _print_header(console, space.base, recordings, folder=folder, scale=scale, pruning=pruning)
    return Driver(study, recordings, console, select_on=parsed.select_on, root=parsed.root)


def _recordings(parsed: argparse.Namespace, console: Console) -> list[Recording]:
    sources: list[Path] = parsed.recordings or []
    if not sources:
        raw = parsed.root / "simulated"
        console.print(f"no --recordings given: simulating two small mice into {raw}", highlight=False)
        sources = simulate(raw, SimulationConfig.for_scale("demo"))
    return open_recordings(sources, cache=parsed.root / "cache")


def _pairs(settings: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--set is {setting!r}, but must be NAME=VALUE")
        pairs[name] = value
    return pairs


def _ranges(settings: Sequence[str]) -> dict[str, tuple[float, float]]:
    ranges = {}
    for setting in settings:
        name, _, span = setting.partition("=")
        low, _, high = span.partition(":")
        try:
            ranges[name] = (float(low), float(high))
        except ValueError:
            raise ValueError(f"--narrow is {setting!r}, but must be NAME=LOW:HIGH") from None
    return ranges


def _print_header(
    console: Console,
    base: RunSpec,
    recordings: Sequence[Recording],
    *,
    folder: Path,
    scale: str,
    pruning: PruningConfig,
) -> None:
    neurons = sum(len(recording.neurons.ids) for recording in recordings)
    lines = (
        f"space {base.family} at {scale} scale, {pruning.pruner} between {pruning.min_epochs} and "
        f"{pruning.max_epochs} epochs",
        f"{len(recordings)} recordings, {neurons} neurons; study in {folder}; look at it with: make ui",
    )
    for line in lines:
        console.print(line, highlight=False)
