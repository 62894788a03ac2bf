"""What was found, as tables and a picture."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.searching.searches import Searched
from benchmarks.searching.surfaces import BEST, CROSSINGS, MAX_EPOCHS, NOISE, Crossing, Surface

OKABE_ITO = ("#999999", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000")


def print_curves(console: Console, *, strides_matter: bool) -> None:
    """Say what the surfaces are like: scores of random runs, and how early epochs rank them."""
    rng = np.random.default_rng(0)
    for crossing in CROSSINGS:
        finals, ranks = [], []
        for seed in range(24):
            surface = Surface(seed, crossing, strides_matter=strides_matter)
            points = [{name: each.draw(rng) for name, each in surface.ranges.items()} for _ in range(100)]
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
