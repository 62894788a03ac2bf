"""What a search would do, before it starts: where, how many runs per bracket, what its runs take."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from rich.console import Console
from rich.table import Table

from data.folds import split_trials
from data.recording import Recording
from data.sampling import count_steps
from hpo.feasibility import Feasibility, available_bytes
from hpo.identity import DATABASE_FILE
from hpo.plan import SearchPlan
from hpo.pruning import PruningConfig, bracket_counts
from hpo.study import read_trials
from models.cost import Cost
from training.spec import RunSpec

POINTS = 40
"""Points of the space that are looked at."""

# What training usually reaches of a machine's own rate of large matrix products.
_SLOWEST, _FASTEST = 0.05, 0.5
# Training takes a forward pass three times: backward is twice as much.
_PASSES = 3
# A state to go on from holds parameters, two moments, and the kept encoder beside it.
_STATE_COPIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What one point of a space takes.

    Attributes:
        cost: of a training step of one clip.
        batch_bytes: of a step of the whole batch at once.
        epoch_flops: of an epoch, forward only.
    """

    cost: Cost
    batch_bytes: int
    epoch_flops: float


def show_plan(plan: SearchPlan, recordings: Sequence[Recording], console: Console, *, keep: int) -> None:
    """Print what a search would do; nothing is started or written."""
    console.print(_bracket_table(plan), highlight=False)
    workers = plan.cluster.slots * plan.cluster.workers_per_run
    memory = available_bytes(gpus_per_run=plan.cluster.gpus_per_worker, slots=workers)
    check = Feasibility.of(recordings, memory_bytes=memory)
    points, infeasible = [], 0
    for spec in sample_specs(plan):
        if spec is None or check(spec) is not None:
            infeasible += 1
            continue
        points.append(measure(spec, check, recordings))
    lines = [f"points      {infeasible} of {POINTS} sampled points cannot run here"]
    if points:
        lines += _ranges(points, memory=memory)
        lines += [_time(plan, points), _disk(plan, points, keep=keep)]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def sample_specs(plan: SearchPlan, count: int = POINTS) -> Iterator[RunSpec | None]:
    """Draw points of a space at random; None for values that cannot work together."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=plan.seed))
    for _ in range(count):
        try:
            yield plan.plan.space.spec(study.ask(), plan.bounds)
        except ValueError:
            yield None


def measure(spec: RunSpec, check: Feasibility, recordings: Sequence[Recording]) -> Point:
    """Return what one point takes."""
    cost = check.cost(spec, clips=1)
    batch = spec.loader.batch_size
    split = split_trials(recordings, spec.split)
    steps = count_steps([len(trials) for trials in split.train.values()], spec.loader)
    sessions = len(recordings) if spec.loader.order == "round" else 1
    return Point(
        cost=cost,
        batch_bytes=cost.peak_bytes if batch == 1 else check.cost(spec, clips=batch).peak_bytes,
        epoch_flops=float(cost.flops) * batch * sessions * steps,
    )


def expected_epochs(config: PruningConfig, counts: dict[int | None, int]) -> float:
    """Return the epochs of all runs when exactly one of ``reduction`` survives every rung.

    Args:
        config: when runs are stopped.
        counts: runs by bracket.
    """
    total = 0.0
    for bracket, runs in counts.items():
        before, alive = 0, float(runs)
        for rung in config.rungs[bracket or 0] if config.pruner in ("hyperband", "asha") else []:
            total += alive * (rung - before)
            before, alive = rung, alive / config.reduction
        total += alive * (config.max_epochs - before)
    return total


def _bracket_table(plan: SearchPlan) -> Table:
    config = plan.pruning
    table = Table(title="brackets", title_justify="left")
    for column in ("bracket", "compared after epochs", "runs"):
        table.add_column(column, justify="right")
    counts = bracket_counts(plan.plan.space.name, plan.limits.runs, config)
    for bracket, rungs in enumerate(config.rungs):
        shown = ", ".join(map(str, rungs)) or "never"
        key = bracket if config.pruner == "hyperband" else None
        table.add_row(str(bracket), shown, str(counts[key]))
    return table


def _ranges(points: Sequence[Point], *, memory: int | None) -> list[str]:
    parameters = sorted(point.cost.parameters for point in points)
    single = sorted(point.cost.peak_bytes for point in points)
    batch = sorted(point.batch_bytes for point in points)
    limit = "" if memory is None else f"; a run may use {memory / 1e9:.2g} GB"
    return [
        f"parameters  {parameters[0] / 1e3:,.0f} k to {parameters[-1] / 1e3:,.0f} k",
        f"memory      {single[0] / 1e9:.2g} to {single[-1] / 1e9:.2g} GB with one clip at a time, "
        f"{batch[0] / 1e9:.2g} to {batch[-1] / 1e9:.2g} GB with the whole batch{limit}",
    ]


def _time(plan: SearchPlan, points: Sequence[Point]) -> str:
    counts = bracket_counts(plan.plan.space.name, plan.limits.runs, plan.pruning)
    epochs = expected_epochs(plan.pruning, dict(counts))
    known = _known_seconds(plan.folder)
    whole = f"about {epochs:.0f} epochs instead of {plan.limits.runs * plan.pruning.max_epochs}"
    if known is not None:
        minutes = epochs * known / plan.cluster.slots / 60
        return f"time        {whole}, {minutes:.0f} min at {known:.1f} s per epoch, as this study's runs took"
    flops = sum(point.epoch_flops for point in points) / len(points)
    ideal = epochs * _PASSES * flops / matrix_rate() / plan.cluster.slots / 60
    return (
        f"time        {whole}, {ideal / _FASTEST:.2g} to {ideal / _SLOWEST:.2g} min of training, if it "
        f"reaches {_FASTEST:.0%} to {_SLOWEST:.0%} of this machine's rate of matrix products"
    )


def _known_seconds(folder: Path) -> float | None:
    if not (folder / DATABASE_FILE).exists():
        return None
    runs = [
        (trial.user_attrs["seconds"], len(trial.intermediate_values))
        for trial in read_trials(folder)
        if trial.user_attrs.get("seconds") and trial.intermediate_values
    ]
    return sum(seconds for seconds, _ in runs) / sum(epochs for _, epochs in runs) if runs else None


def _disk(plan: SearchPlan, points: Sequence[Point], *, keep: int) -> str:
    largest = 4 * max(point.cost.parameters for point in points)
    # Two states and two encoders of each run that trains, one encoder of each that is kept.
    most = largest * (keep + plan.cluster.slots * 2 * _STATE_COPIES)
    return (
        f"disk        at most {most / 1e9:.2g} GB of checkpoints: {keep} kept runs and {plan.cluster.slots} "
        "that train"
    )


def matrix_rate(seconds: float = 0.3, size: int = 512) -> float:
    """Return the floating-point operations per second of large matrix products of one run's share here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.ones(size, size, device=device)
    matrix @ matrix
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        (matrix @ matrix).sum().item()
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - started)
