"""What hyperparameters have to do with the score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution

from data.svg import BLUE, GRAY, GREEN, ORANGE, WIDTH, rule, scores_map
from hpo.figures.progress import color_bar
from hpo.importance import Importances
from hpo.report_data import RunRecord, StudyRecord, last_scores

MOST_SHOWN = 12
"""Axes of the parallel coordinates: the most important ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How one hyperparameter is drawn.

    Attributes:
        name: dotted name.
        low: lowest value of any run's range.
        high: highest.
        log: logarithmic.
        choices: in order, for one that has choices.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, runs: Sequence[RunRecord]) -> "Scale":
        """Return the scale that holds the ranges of all runs."""
        found: list[Any] = [run.trial.distributions[name] for run in runs if name in run.params]
        if isinstance(found[0], CategoricalDistribution):
            return cls(name=name, choices=tuple(map(str, found[0].choices)))
        low, high = min(each.low for each in found), max(each.high for each in found)
        return cls(name=name, low=float(low), high=float(high), log=bool(found[0].log))

    def place(self, value: object) -> float:
        """Return where a value lies, from 0 to 1."""
        if self.choices:
            return (self.choices.index(str(value)) + 0.5) / len(self.choices)
        number, low, high = float(str(value)), self.low, self.high
        if self.log:
            number, low, high = math.log(number), math.log(low), math.log(high)
        return (number - low) / (high - low) if high > low else 0.5


def names_of(study: StudyRecord) -> list[str]:
    """Return the hyperparameters that any run with a score has."""
    return sorted({name for run in study.scored for name in run.params})


def ordered_names(study: StudyRecord, found: Importances) -> list[str]:
    """Return the hyperparameters, the most important first."""
    names = [row.name for row in found.rows]
    return names + [name for name in names_of(study) if name not in names]


def draw_importances(found: Importances, *, most: int = 21) -> Figure | None:
    """Draw the forests' shares with their spread; None without a ranking."""
    rows = found.rows[:most][::-1]
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH * 0.8, 0.6 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    rule(axes, axis="x")
    places = np.arange(len(rows))
    for outstanding, color, label in ((True, BLUE, "above chance"), (False, GRAY, "not above chance")):
        chosen = [place for place in places if rows[place].stands_out == outstanding]
        if chosen:
            axes.barh(
                chosen,
                [rows[place].forest for place in chosen],
                xerr=[rows[place].spread for place in chosen],
                color=color,
                ecolor=ORANGE,
                height=0.7,
                label=label,
            )
    known = [place for place in places if rows[place].optuna is not None]
    shares = np.array([rows[place].optuna for place in known], dtype=np.float64)
    axes.scatter(shares, known, marker="D", s=16, facecolor="none", edgecolor=GREEN, label="Optuna", zorder=3)
    axes.set_yticks(places, labels=[row.name for row in rows])
    axes.set(xlabel="share (bars: forests, with their standard deviation)", ylim=(-0.6, len(rows) - 0.4))
    axes.legend(loc="lower right")
    return figure


def draw_parallel(study: StudyRecord, names: Sequence[str]) -> Figure | None:
    """Draw every run with a score as a line through its values; None with fewer than two."""
    names = list(names[:MOST_SHOWN])
    runs = [run for run in study.scored if all(name in run.params for name in names)]
    if len(runs) < 2 or not names:
        return None
    scales = [Scale.of(name, runs) for name in names]
    finished = [run.score for run in runs if run.score is not None]
    norm = Normalize(min(finished, default=0.0), max(finished, default=1.0))
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for run in sorted(runs, key=lambda run: (run.score is not None, run.score or 0.0)):
        places = [scale.place(run.params[scale.name]) for scale in scales]
        is_best = run is study.best
        color = ORANGE if is_best else GRAY if run.score is None else scores_map()(norm(run.score))
        width = 2.2 if is_best else 0.5 if run.score is None else 1.1
        axes.plot(places, color=color, linewidth=width, alpha=0.5 if run.score is None else 0.9)
    _label_scales(axes, scales)
    if finished:
        color_bar(figure, axes, norm)
    return figure


def _label_scales(axes: Axes, scales: Sequence[Scale]) -> None:
    axes.set(xlim=(-0.3, len(scales) - 0.7), ylim=(-0.04, 1.04), yticks=[])
    axes.set_xticks(range(len(scales)), labels=[scale.name for scale in scales], rotation=35, ha="right")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    for index, scale in enumerate(scales):
        axes.axvline(index, color=GRAY, linewidth=0.8, zorder=0)
        if scale.choices:
            shown = [(scale.place(choice), choice) for choice in scale.choices]
        else:
            shown = [(0.0, f"{scale.low:g}"), (1.0, f"{scale.high:g}")]
        for place, text in shown:
            inner = 0.0 < place < 1.0
            axes.annotate(
                text,
                (index, place),
                xytext=(3, 0) if inner else (0, 4 if place == 1.0 else -4),
                textcoords="offset points",
                ha="left" if inner else "center",
                va="center" if inner else "bottom" if place == 1.0 else "top",
                fontsize=7,
                annotation_clip=False,
            )


def draw_slices(study: StudyRecord, names: Sequence[str]) -> Figure | None:
    """Draw the score over every hyperparameter; None without any score."""
    if not study.scored or not names:
        return None
    columns = 4
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, name in zip(grid, names, strict=False):
        _draw_slice(axes, study, name)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    return figure


def _draw_slice(axes: Axes, study: StudyRecord, name: str) -> None:
    runs = [run for run in study.scored if name in run.params]
    scale = Scale.of(name, runs)
    rule(axes)
    kinds: tuple[tuple[list[RunRecord], dict[str, Any]], ...] = (
        ([run for run in runs if run.score is None], {"facecolor": "none", "edgecolor": GRAY, "marker": "v"}),
        ([run for run in runs if run.score is not None and run is not study.best], {"color": BLUE}),
        ([run for run in runs if run is study.best], {"color": ORANGE, "zorder": 3}),
    )
    for run_list, style in kinds:
        values = [
            scale.choices.index(str(run.params[name])) if scale.choices else run.params[name]
            for run in run_list
        ]
        if values:
            axes.scatter(values, last_scores(run_list), s=14, linewidth=0.7, **style)
    axes.set_title(name, fontsize=8)
    axes.tick_params(labelsize=7)
    if scale.choices:
        labels = [choice if len(choice) <= 10 else choice[:9] + "~" for choice in scale.choices]
        crowded = sum(map(len, labels)) > 22
        axes.set_xticks(range(len(labels)), labels=labels, rotation=40 if crowded else 0, fontsize=6)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    elif scale.log:
        axes.set_xscale("log")
    elif all(isinstance(run.params[name], int) for run in runs):
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def draw_correlations(study: StudyRecord) -> Figure | None:
    """Draw the linear correlation of ordered hyperparameters with each other and with the score."""
    names, matrix = correlation_matrix(study)
    if len(names) < 2:
        return None
    size = min(WIDTH, 2.4 + 0.33 * len(names))
    figure = Figure(figsize=(size, size * 0.86), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(matrix[::-1], cmap="PuOr_r", vmin=-1, vmax=1, edgecolor="none")
    places = np.arange(len(names)) + 0.5
    axes.set_xticks(places, labels=names, rotation=90, fontsize=7)
    axes.set_yticks(places, labels=names[::-1], fontsize=7)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for row, column in zip(*np.nonzero(np.isfinite(matrix)), strict=True):
        value = matrix[row, column]
        if row != column:
            dark = abs(value) > 0.7
            axes.text(
                column + 0.5,
                len(names) - row - 0.5,
                _short(value),
                ha="center",
                va="center",
                fontsize=6,
                color="white" if dark else "#222222",
            )
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=40)
    bar.outline.set_visible(False)
    return figure


def _short(value: float) -> str:
    text = f"{value:.1f}".replace("0.", ".")
    return "0" if text in (".0", "-.0") else text


def correlation_matrix(study: StudyRecord) -> tuple[list[str], np.ndarray]:
    """Return names (the score first) and Pearson's correlations; NaN where a value never changes."""
    runs = [run for run in study.scored if run.outcome != "running"]
    if len(runs) < 3:
        return [], np.empty((0, 0))
    names = [
        name
        for name in names_of(study)
        if all(isinstance(run.params.get(name), int | float) for run in runs)
        and len({run.params[name] for run in runs}) > 1
    ]
    scores = last_scores(runs)
    if np.ptp(scores) == 0:
        return [], np.empty((0, 0))
    table = np.stack(
        [scores, *(np.array([run.params[name] for run in runs], dtype=np.float64) for name in names)]
    )
    return ["score", *names], np.atleast_2d(np.corrcoef(table))
