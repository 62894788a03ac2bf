"""Which sampler and pruner find more with the same number of epochs, on noisy surfaces with known optimum.

    python benchmarks/search.py                        # methods: table, and docs/pictures/search.png
    python benchmarks/search.py --what settings        # Hyperband's minimum and reduction
    python benchmarks/search.py --what strides         # how to ask for a stride that depends on its patch
    python benchmarks/search.py --what importances     # how stopped runs should count in importances

Every search is a real one: the ViViT space, ``hpo/sampler.py``, ``hpo/pruning.py``, ``hpo/study.py`` and
``Driver.run_here``. Only the objective is a formula, and Optuna's storage is in memory, which decides the
same and is faster. A surface has 21 hyperparameters of very unequal weight, an interaction and categorical
steps; curves rise at a rate that does not depend on the final score (mild crossing) or is lower for better
runs (strong crossing); every epoch's score has noise.

Regret is the optimum's score less the true final score of the run that a user would take: the finished run
with the highest observed score. Without any finished run the regret is that of a score of 0.
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

# This folder is first on the path of a script, and models.py in it would be found in place of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import optuna  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from optuna.trial import FrozenTrial  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from hpo.driver import Driver, Limits, OnEpoch  # noqa: E402
from hpo.importance import StoppedRuns, importances  # noqa: E402
from hpo.pruning import PruningConfig  # noqa: E402
from hpo.space import Ask, Bounds, Known, plan_space  # noqa: E402
from hpo.spaces import SPACES, vivit  # noqa: E402
from hpo.study import Asked, Study  # noqa: E402
from training.names import flatten  # noqa: E402
from training.recipes import recipe  # noqa: E402
from training.results import EpochReport, Outcome, RunResult  # noqa: E402
from training.spec import RunSpec  # noqa: E402

MAX_EPOCHS = 27
BEST = 0.4
NOISE = 0.006
OKABE_ITO = ("#999999", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
Crossing = Literal["mild", "strong"]
CROSSINGS: tuple[Crossing, ...] = ("mild", "strong")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to search.

    Attributes:
        sampler: what proposes.
        pruner: what stops.
        min_epochs: before nothing is stopped.
        reduction: one of so many survives a rung.
        suggest: the space.
    """

    sampler: str = "tpe"
    pruner: str = "hyperband"
    min_epochs: int = 3
    reduction: int = 3
    suggest: Callable[[Ask], None] = SPACES["vivit"]["full"]


METHODS = {
    "random": Method(sampler="random", pruner="none"),
    "TPE": Method(pruner="none"),
    "TPE + Hyperband": Method(),
    "TPE + median": Method(pruner="median"),
    "TPE + ASHA": Method(pruner="asha"),
}
SETTINGS = {
    "Hyperband, min 1/27, reduction 3": Method(min_epochs=1),
    "Hyperband, min 1/9, reduction 3": Method(),
    "Hyperband, min 1/3, reduction 3": Method(min_epochs=9),
    "Hyperband, min 1/9, reduction 2": Method(reduction=2),
    "Hyperband, min 1/9, reduction 4": Method(reduction=4),
    "median, min 1/3": Method(pruner="median", min_epochs=9),
    "random + Hyperband": Method(sampler="random"),
}


def share_of_patch(ask: Ask) -> None:
    """Ask for strides as shares of their patches, the rest as the space does."""
    _suggest_strides(
        ask, lambda trial, name, top: 1 + min(int(trial.suggest_float(name, 0, 1) * top), top - 1)
    )


def clipped_to_patch(ask: Ask) -> None:
    """Ask for strides over the whole range and cut what is longer than the patch."""
    highest = {"model.spatial_patch_stride": 16, "model.temporal_patch_stride": 50}
    _suggest_strides(ask, lambda trial, name, top: min(int(trial.suggest_int(name, 1, highest[name])), top))


def _suggest_strides(ask: Ask, stride: Callable[[Any, str, int], int]) -> None:
    class Strides(Ask):
        def whole(self, name: str, low: int, high: int, *, limit: int | None = None, **options: Any) -> int:
            if limit is None:
                return super().whole(name, low, high, **options)
            self.values[name] = stride(self._trial, name, limit)
            return int(self.values[name])

    inner = Strides(ask._trial, ask._bounds)
    vivit.suggest(inner)
    ask.values |= inner.values


STRIDES = {
    "dynamic range": Method(pruner="none"),
    "share of the patch": Method(pruner="none", suggest=share_of_patch),
    "whole range, clipped": Method(pruner="none", suggest=clipped_to_patch),
    "dynamic range + Hyperband": Method(),
    "share of the patch + Hyperband": Method(suggest=share_of_patch),
    "whole range, clipped + Hyperband": Method(suggest=clipped_to_patch),
}


class Surface:
    """The true final score and the learning curve of every point of the ViViT space.

    Args:
        seed: of the optimum's place and of what matters how much.
        crossing: how curves cross.
        strides_matter: make patch sizes and strides the four most important hyperparameters.
    """

    def __init__(self, seed: int, crossing: Crossing, *, strides_matter: bool = False) -> None:
        rng = np.random.default_rng([7, seed])
        self._crossing = crossing
        self._ranges = _ranges()
        self._names = sorted(self._ranges)
        order = rng.permutation(len(self._names))
        if strides_matter:
            patches = [number for number, name in enumerate(self._names) if "patch_s" in name]
            order = np.array([*rng.permutation(patches), *[place for place in order if place not in patches]])
        self._first, self._second = order[:2]
        self._weights = np.empty(len(order))
        self._weights[order] = 10.0 / (1 + np.arange(len(order))) ** 1.3
        optimum = {name: self._ranges[name].draw(rng) for name in self._names}
        for axis in ("spatial", "temporal"):
            # Of a stride's whole range only what its patch allows can be reached.
            patch = optimum[f"model.{axis}_patch_size"]
            optimum[f"model.{axis}_patch_stride"] = int(rng.integers(1, patch + 1))
        self._center = self._place(optimum)
        self._direction = rng.normal(size=len(order)) / math.sqrt(len(order))

    def final(self, values: Mapping[str, Any]) -> float:
        """Return the true score after all epochs."""
        away = self._away(values)
        cost = float(self._weights @ away**2 + 4.0 * away[self._first] * away[self._second])
        return BEST * math.exp(-cost / 2)

    def curve(self, values: Mapping[str, Any]) -> np.ndarray:
        """Return the true score after every epoch."""
        final = self.final(values)
        rate = 5.0 * math.exp(1.5 * float(self._direction @ self._away(values)))
        if self._crossing == "strong":
            rate *= 3.0 * 10.0 ** (-2.2 * final / BEST)
        time = np.arange(1, MAX_EPOCHS + 1) / MAX_EPOCHS
        return final * -np.expm1(-rate * time) / -math.expm1(-rate)

    def _away(self, values: Mapping[str, Any]) -> np.ndarray:
        away = self._place(values) - self._center
        for number, name in enumerate(self._names):
            if self._ranges[name].choices:
                # Every wrong choice is equally far.
                away[number] = 0.5 * (away[number] != 0)
        return away

    def _place(self, values: Mapping[str, Any]) -> np.ndarray:
        return np.array([self._ranges[name].place(values[name]) for name in self._names])


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The range of one hyperparameter, whatever its patch."""

    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def place(self, value: Any) -> float:
        """Return where a value lies from 0 to 1; choices are numbered."""
        if self.choices:
            return float(self.choices.index(value))
        return (float(value) - self.low) / (self.high - self.low)

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value that is not at the edge."""
        if self.choices:
            return self.choices[int(rng.integers(len(self.choices)))]
        value = rng.uniform(self.low + 0.1 * (self.high - self.low), self.high - 0.1 * (self.high - self.low))
        return round(value) if self.whole else float(value)


def _ranges() -> dict[str, Range]:
    """Return the widest range of every hyperparameter of the ViViT space."""
    ranges: dict[str, Range] = {}

    class Widest(Known):
        def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
            ranges[name] = Range(low=low, high=high, whole=True)
            return high

        def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
            ranges[name] = Range(low=low, high=high)
            return high

        def suggest_categorical(self, name: str, choices: Any) -> Any:
            ranges[name] = Range(choices=tuple(choices))
            return choices[0]

    vivit.suggest(Ask(Widest({})))
    return ranges


class Objective:
    """A run of milliseconds: the curve of its point plus noise. It keeps what its search has cost so far."""

    def __init__(self, surface: Surface, *, seed: int, budget: int) -> None:
        self._surface, self._seed, self._budget = surface, seed, budget
        self.epochs = 0
        self.finished: list[tuple[int, float, float]] = []

    def __call__(self, spec: RunSpec, folder: Path, on_epoch: OnEpoch) -> RunResult:
        """Make a run; after the last epoch of the budget everything stops."""
        number = int(folder.name)
        values = flatten(spec)
        noise = np.random.default_rng([3, self._seed, number]).normal(scale=NOISE, size=MAX_EPOCHS)
        observed = self._surface.curve(values) + noise
        for epoch, score in enumerate(observed, start=1):
            if self.epochs >= self._budget:
                return _result(spec, folder, Outcome.PRUNED, None, epoch - 1)
            self.epochs += 1
            if not on_epoch(_report(epoch, float(score))):
                return _result(spec, folder, Outcome.PRUNED, float(score), epoch)
        self.finished.append((self.epochs, float(observed[-1]), self._surface.final(values)))
        return _result(spec, folder, Outcome.FINISHED, float(observed[-1]), MAX_EPOCHS)


def _report(epoch: int, score: float) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        loss=1.0,
        score=score,
        score_by_session={},
        best_score=score,
        rate=0.1,
        seconds=0.0,
        clips_per_second=1.0,
        peak_memory_bytes=1,
    )


def _result(spec: RunSpec, folder: Path, outcome: Outcome, score: float | None, epochs: int) -> RunResult:
    return RunResult(
        run_id=folder.name,
        spec=spec,
        outcome=outcome,
        score=score,
        score_by_session={},
        epochs=epochs,
        seconds=0.0,
        checkpoint=None,
        error=None,
    )


class Budget:
    """An observer that ends a search when its epochs are used up."""

    def __init__(self, objective: Objective, budget: int) -> None:
        self._objective, self._budget = objective, budget
        self.driver: Driver | None = None
        self.runs = 0

    def started(self, _asked: Asked) -> None:
        """Count."""
        self.runs += 1

    def epoch(self, _number: int, _report: EpochReport) -> None:
        """End the search after the last epoch."""
        assert self.driver is not None
        if self._objective.epochs >= self._budget:
            self.driver.stop("the epochs are used up")

    def ended(self, _number: int, _result: RunResult) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What one search did.

    Attributes:
        runs: that were started.
        finished: epochs spent so far, observed and true score of every finished run.
        trials: as the study stores them.
    """

    runs: int
    finished: tuple[tuple[int, float, float], ...]
    trials: tuple[FrozenTrial, ...]

    def regret(self, epochs: int) -> float:
        """Return the regret after so many epochs."""
        known = [(observed, true) for spent, observed, true in self.finished if spent <= epochs]
        return BEST - max(known)[1] if known else BEST


def search(method: Method, crossing: Crossing, seed: int, *, budget: int, strides_matter: bool) -> Searched:
    """Make one search."""
    objective = Objective(Surface(seed, crossing, strides_matter=strides_matter), seed=seed, budget=budget)
    base = replace(recipe("vivit"), epochs=MAX_EPOCHS)
    plan = plan_space("vivit", method.suggest, base, Bounds())
    pruning = PruningConfig(
        pruner=method.pruner,
        min_epochs=method.min_epochs,
        max_epochs=MAX_EPOCHS,
        reduction=method.reduction,
    )
    with tempfile.TemporaryDirectory() as folder, patch("hpo.study.storage_url", lambda _folder: None):
        study = Study(
            Path(folder) / "study",
            plan.space,
            bounds=Bounds(),
            pruning=pruning,
            seed=seed,
            identity={},
            sampler=method.sampler,
        )
        watch = Budget(objective, budget)
        watch.driver = Driver(study, Limits(runs=10**6), observers=[watch])
        watch.driver.run_here(objective)
        trials = tuple(study.trials())
        study.close()
    return Searched(runs=watch.runs, finished=tuple(objective.finished), trials=trials)


def rate_importances(crossing: Crossing, seed: int, *, budget: int) -> dict[str, tuple[float, float, float]]:
    """Return for each way to count stopped runs how close importances come to the true ones.

    Returns:
        Correlation of the shares with those of 1,000 random points without noise or stopping, how many of the
        true first three are among the first three, and out-of-bag R2.
    """
    surface = Surface(seed, crossing)
    truth = {row.name: row.forest for row in importances(_random_trials(surface, 1000), trees=20).rows}
    first = set(sorted(truth, key=lambda name: -truth[name])[:3])
    trials = search(METHODS["TPE + Hyperband"], crossing, seed, budget=budget, strides_matter=False).trials
    ratings = {}
    for stopped in get_args(StoppedRuns):
        found = importances(trials, stopped=stopped, trees=50)
        shares = {row.name: row.forest for row in found.rows}
        names = sorted(shares)
        match = np.corrcoef([shares[name] for name in names], [truth[name] for name in names])[0, 1]
        ratings[stopped] = (float(match), float(len(first & {row.name for row in found.rows[:3]})), found.fit)
    return ratings


def _random_trials(surface: Surface, number: int) -> list[FrozenTrial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    for _ in range(number):
        trial = study.ask()
        ask = Ask(trial)
        vivit.suggest(ask)
        study.tell(trial, surface.final(ask.values))
    return study.get_trials(deepcopy=False)


def importance_table(parsed: argparse.Namespace) -> Table:
    """Return how close importances come to the true ones, by the way stopped runs are counted."""
    table = Table(
        title=f"importances after {parsed.budget} full runs, {parsed.seeds} surfaces", title_justify="left"
    )
    for column in ("crossing", "stopped runs", "correlation with truth", "of the first 3", "out-of-bag R2"):
        table.add_column(column, justify="left" if len(table.columns) < 2 else "right")
    with ProcessPoolExecutor(parsed.processes, mp_context=get_context("spawn")) as pool:
        for crossing in CROSSINGS:
            rate = partial(rate_importances, crossing, budget=parsed.budget * MAX_EPOCHS)
            found = list(pool.map(rate, range(parsed.seeds)))
            for stopped in get_args(StoppedRuns):
                means = np.mean([each[stopped] for each in found], axis=0)
                errors = np.std([each[stopped] for each in found], axis=0, ddof=1) / math.sqrt(len(found))
                cells = [f"{mean:.2f} +- {error:.2f}" for mean, error in zip(means, errors, strict=True)]
                table.add_row(crossing, stopped, *cells)
    return table


def main() -> None:
    """Search with every method on every surface, print the table and draw the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--what", choices=("methods", "settings", "strides", "importances"), default="methods"
    )
    parser.add_argument("--seeds", type=int, default=20, help="surfaces per method and kind of crossing")
    parser.add_argument("--budget", type=int, default=20, help="epochs of so many full runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--picture", type=Path, help="default: docs/pictures/search.png for methods")
    parsed = parser.parse_args()
    console = Console(width=110)
    if parsed.what == "importances":
        console.print(importance_table(parsed))
        return
    methods = {"methods": METHODS, "settings": SETTINGS, "strides": STRIDES}[parsed.what]
    strides = parsed.what == "strides"
    crossings = CROSSINGS[:1] if strides else CROSSINGS
    searches = _search_all(methods, crossings, parsed, strides_matter=strides)
    print_curves(console, strides_matter=strides)
    for crossing in crossings:
        chosen = {name: found for (name, kind), found in searches.items() if kind == crossing}
        console.print(regret_table(chosen, crossing, budget=parsed.budget))
    picture = parsed.picture or (Path("docs/pictures/search.png") if parsed.what == "methods" else None)
    if picture is not None:
        draw(searches, crossings, budget=parsed.budget).savefig(picture, dpi=110)
        console.print(f"picture: {picture}")


def _search_all(
    methods: Mapping[str, Method],
    crossings: Sequence[Crossing],
    parsed: argparse.Namespace,
    *,
    strides_matter: bool,
) -> dict[tuple[str, Crossing], list[Searched]]:
    budget = parsed.budget * MAX_EPOCHS
    with ProcessPoolExecutor(parsed.processes, mp_context=get_context("spawn")) as pool:
        waiting = {
            (name, crossing): [
                pool.submit(
                    partial(search, method, crossing, seed, budget=budget, strides_matter=strides_matter)
                )
                for seed in range(parsed.seeds)
            ]
            for name, method in methods.items()
            for crossing in crossings
        }
        return {key: [future.result() for future in futures] for key, futures in waiting.items()}


def print_curves(console: Console, *, strides_matter: bool) -> None:
    """Say what the surfaces are like: scores of random runs, and how early epochs rank them."""
    rng = np.random.default_rng(0)
    for crossing in CROSSINGS:
        finals, ranks = [], []
        for seed in range(24):
            surface = Surface(seed, crossing, strides_matter=strides_matter)
            points = [{name: each.draw(rng) for name, each in surface._ranges.items()} for _ in range(100)]
            curves = np.array([surface.curve(point) for point in points])
            noisy = curves + rng.normal(scale=NOISE, size=curves.shape)
            finals += curves[:, -1].tolist()
            ranks.append([spearmanr(noisy[:, epoch - 1], noisy[:, -1]).statistic for epoch in (1, 3, 9)])
        low, middle, high = np.quantile(finals, (0.1, 0.5, 0.9))
        early = ", ".join(f"{value:.2f}" for value in np.mean(ranks, axis=0))
        console.print(
            f"{crossing}: random runs end at {middle:.3f} ({low:.3f} to {high:.3f}), the optimum is {BEST}; "
            f"rank correlation with the final score after 1, 3, 9 of {MAX_EPOCHS} epochs: {early}"
        )


def regret_table(searches: Mapping[str, Sequence[Searched]], crossing: str, *, budget: int) -> Table:
    """Return mean regret and its standard error after parts of the budget, and the runs made."""
    parts = [part for part in (5, 10, 20, 40, 80) if part <= budget]
    table = Table(title=f"regret x 1000, {crossing} crossing of curves", title_justify="left")
    table.add_column("method")
    for part in parts:
        table.add_column(f"{part} full runs", justify="right")
    table.add_column("runs", justify="right")
    table.add_column("finished", justify="right")
    for name, found in searches.items():
        cells = []
        for part in parts:
            regrets = 1000 * np.array([each.regret(part * MAX_EPOCHS) for each in found])
            cells.append(f"{regrets.mean():.0f} +- {regrets.std(ddof=1) / math.sqrt(len(regrets)):.0f}")
        runs, finished = (
            np.mean([each.runs for each in found]),
            np.mean([len(each.finished) for each in found]),
        )
        table.add_row(name, *cells, f"{runs:.0f}", f"{finished:.0f}")
    return table


def draw(
    searches: Mapping[tuple[str, Crossing], Sequence[Searched]], crossings: Sequence[Crossing], *, budget: int
) -> Figure:
    """Draw mean regret, with its standard error, over the epochs spent."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, len(crossings), sharey=True, squeeze=False)[0]
    spent = np.linspace(1, budget, 4 * budget)
    for panel, crossing in zip(axes, crossings, strict=True):
        names = [name for name, kind in searches if kind == crossing]
        for color, name in zip(OKABE_ITO, names, strict=False):
            found = searches[name, crossing]
            regrets = np.array([[each.regret(int(part * MAX_EPOCHS)) for part in spent] for each in found])
            mean, error = regrets.mean(axis=0), regrets.std(axis=0, ddof=1) / math.sqrt(len(found))
            panel.plot(spent, mean, color=color, label=name)
            panel.fill_between(spent, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        panel.set(
            title=f"{crossing} crossing of learning curves",
            xlabel=f"epochs spent / {MAX_EPOCHS}",
            xscale="log",
        )
        panel.set_xticks([1, 2, 5, 10, 20, 40], labels=["1", "2", "5", "10", "20", "40"])
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("regret: optimum - true score of the run chosen")
    axes[-1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
