"""What a search is made of, from its command line: space, budget, recordings, where runs execute."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data.confined import require_name
from data.recording import Recording
from hpo.cluster import ClusterConfig
from hpo.driver import Limits
from hpo.lanes import LaneChoice, choose_lane
from hpo.pruning import PruningConfig
from hpo.space import Bounds, SpacePlan, plan_space
from hpo.spaces import SPACES
from training.material import SelectOn
from training.names import nearest
from training.recipes import Scale, recipe
from training.settings import read_pairs
from training.spec import to_plain

EPOCHS: Mapping[str, int] = {"demo": 9, "full": 60}
"""Epochs of a run that is never stopped, by scale."""

_LOWEST: Mapping[str, int] = {
    "runs": 1,
    "min_epochs": 1,
    "max_epochs": 1,
    "reduction": 2,
    "seed": 0,
    "confirm": 0,
    "confirm_seeds": 1,
    "keep": 1,
    "max_concurrent": 1,
    "workers_per_run": 1,
    "gpus_per_run": 0,
    "wait": 0,
}
_ABOVE_ZERO = ("time_budget", "gpu_hours", "run_timeout", "cpus_per_worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """Everything a search needs to know before it starts.

    Attributes:
        folder: of the study.
        scale: full or demo.
        bounds: what the user has fixed.
        plan: the space.
        pruning: when runs are stopped.
        limits: when the search ends.
        cluster: where runs execute.
        lane: how, and why so.
        select_on: what scores look at.
        seed: of proposals and runs.
        sampler: what proposes.
    """

    folder: Path
    scale: Scale
    bounds: Bounds
    plan: SpacePlan
    pruning: PruningConfig
    limits: Limits
    cluster: ClusterConfig
    lane: LaneChoice
    select_on: SelectOn
    seed: int
    sampler: str

    def identity(self, recordings: Sequence[Recording]) -> dict[str, Any]:
        """Return what the study's results depend on; a study is gone on with only where it is the same."""
        return {
            "space": {"name": self.plan.space.name, "scale": self.scale, "ranges": dict(self.plan.ranges)},
            "base": to_plain(self.plan.space.base),
            "pinned": {name: str(value) for name, value in self.bounds.pinned.items()},
            "narrowed": {name: list(pair) for name, pair in self.bounds.narrowed.items()},
            "recordings": {recording.session: recording.fingerprint for recording in recordings},
            "select_on": self.select_on,
            "pruning": asdict(self.pruning),
            "seed": self.seed,
            "sampler": self.sampler,
        }


def make_plan(parsed: argparse.Namespace) -> SearchPlan:
    """Read a search from its parsed command line.

    Raises:
        ValueError: something does not exist, or lies outside the space.
    """
    _require_sensible(parsed)
    if parsed.space not in SPACES:
        raise ValueError(f"space is {parsed.space!r}{nearest(parsed.space, SPACES)}")
    scale: Scale = parsed.scale or default_scale(parsed.recordings)
    max_epochs = parsed.max_epochs or EPOCHS[scale]
    pruning = PruningConfig(
        pruner=parsed.pruner,
        min_epochs=parsed.min_epochs or max(1, -(-max_epochs // 9)),
        max_epochs=max_epochs,
        reduction=parsed.reduction,
    )
    base = replace(recipe(parsed.space, scale=scale), epochs=max_epochs, seed=parsed.seed)
    bounds = Bounds(pinned=read_pairs(parsed.set), narrowed=read_ranges(parsed.narrow))
    lane = choose_lane(parsed.lane, workers_per_run=parsed.workers_per_run, is_short=scale == "demo")
    cluster = _cluster(parsed, scale=scale, lane=lane)
    return SearchPlan(
        folder=parsed.root
        / "studies"
        / require_name(parsed.name or f"{parsed.space}-{scale}", what="--name"),
        scale=scale,
        bounds=bounds,
        plan=plan_space(parsed.space, SPACES[parsed.space][scale], base, bounds),
        pruning=pruning,
        limits=Limits(
            runs=parsed.runs,
            seconds=None if parsed.time_budget is None else 60 * parsed.time_budget,
            gpu_seconds=None if parsed.gpu_hours is None else 3600 * parsed.gpu_hours,
            gpus_per_run=cluster.gpus_per_run,
        ),
        cluster=cluster,
        lane=lane,
        select_on=parsed.select_on,
        seed=parsed.seed,
        sampler=parsed.sampler,
    )


def _require_sensible(parsed: argparse.Namespace) -> None:
    for name, lowest in _LOWEST.items():
        value = getattr(parsed, name)
        if value is not None and value < lowest:
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}, but must be at least {lowest}")
    for name in _ABOVE_ZERO:
        value = getattr(parsed, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}, but must be above 0")


def default_scale(recordings: Sequence[Path] | None) -> Scale:
    """Return full where there are recordings and a GPU, demo elsewhere."""
    return "full" if recordings and torch.cuda.is_available() else "demo"


def _cluster(parsed: argparse.Namespace, *, scale: Scale, lane: LaneChoice) -> ClusterConfig:
    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    workers = parsed.workers_per_run
    gpus_per_run = parsed.gpus_per_run if parsed.gpus_per_run is not None else float(workers * (gpus > 0))
    if parsed.max_concurrent is not None:
        slots = parsed.max_concurrent
    elif gpus_per_run > 0:
        slots = max(int(gpus / gpus_per_run), 1)
    else:
        # A small run gains nothing from a second thread, a full one gains little from a fifth.
        slots = max((cores if scale == "demo" else cores // 4) // workers, 1)
    slots = min(slots, parsed.runs)
    return ClusterConfig(
        slots=slots,
        lane=lane.lane,
        workers_per_run=workers,
        cpus_per_worker=parsed.cpus_per_worker or max(cores // max(slots * workers, 1), 1),
        gpus_per_worker=gpus_per_run / workers,
        address=parsed.address,
        wait_seconds=60 * parsed.wait,
        run_timeout_seconds=None if parsed.run_timeout is None else 60 * parsed.run_timeout,
        verbose=parsed.verbose,
    )


def read_ranges(settings: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Read ``NAME=LOW:HIGH`` settings."""
    ranges = {}
    for setting in settings:
        name, _, span = setting.partition("=")
        low, _, high = span.partition(":")
        try:
            ranges[name] = (float(low), float(high))
        except ValueError:
            raise ValueError(
                f"--narrow is {setting!r}, but must be NAME=LOW:HIGH, such as model.num_heads=2:8"
            ) from None
    return ranges
