"""What a study found, when, and at what cost."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data.svg import BLUE, GRAY, GREEN, ORANGE, RED, WIDTH, ink, legend_beside, rule, scores_map
from hpo.report_data import (
    RunRecord,
    StudyRecord,
    cheapest_best,
    last_scores,
    rung_ranks,
    training_seconds,
)
from training.results import Outcome

_LABEL = "hold-out correlation"


def draw_history(study: StudyRecord) -> Figure:
    """Draw every run's score in the order of runs, and the best so far."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    rule(axes)
    finished = sorted(study.finished, key=lambda run: run.number)
    stopped = [run for run in study.scored if run.score is None]
    if stopped:
        axes.scatter(
            [run.number for run in stopped],
            last_scores(stopped),
            marker="v",
            s=22,
            facecolor="none",
            edgecolor=GRAY,
            label="stopped or running: last score",
        )
    if finished:
        numbers, scores = [run.number for run in finished], [run.score or 0.0 for run in finished]
        axes.scatter(numbers, scores, s=24, color=BLUE, label="finished")
        best = np.maximum.accumulate(scores)
        axes.step(
            [*numbers, study.runs[-1].number + 0.5],
            [*best, best[-1]],
            where="post",
            color=ORANGE,
            label="best so far",
        )
    _draw_published(axes, study)
    _draw_scoreless(axes, study)
    axes.set(xlabel="run", ylabel=_LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_beside(axes)
    return figure


def _draw_published(axes: Axes, study: StudyRecord) -> None:
    run = next((run for run in study.finished if run.number == study.published), None)
    if run is not None and run.score is not None:
        axes.axhline(run.score, color=GREEN, linestyle="--", linewidth=1, label="published values")


def _draw_scoreless(axes: Axes, study: StudyRecord) -> None:
    """Mark runs without a score below the axis."""
    kinds = ((str(Outcome.FAILED), "x", RED), (str(Outcome.INFEASIBLE), "|", GRAY))
    for outcome, marker, color in kinds:
        numbers = [run.number for run in study.runs if run.outcome == outcome and run.last_score is None]
        if numbers:
            axes.plot(
                numbers,
                [0.02] * len(numbers),
                marker,
                color=color,
                transform=axes.get_xaxis_transform(),
                label=outcome,
            )


def draw_curves(study: StudyRecord) -> Figure:
    """Draw the learning curves of all runs; where one was stopped, it ends in a mark."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots()
    rule(axes)
    for rung in study.rungs if len(study.rungs) <= 6 else ():
        axes.axvline(rung, color=GRAY, linestyle=":", linewidth=1)
    colors = _colors(study)
    for run in study.scored:
        epochs, scores = _finite(run)
        if run.score is None:
            axes.plot(epochs, scores, color=GRAY, linewidth=0.8, alpha=0.7)
        else:
            axes.plot(
                epochs, scores, color=scores_map()(colors(run.score)), linewidth=1.3, marker=".", markersize=3
            )
    stopped = [_finite(run) for run in study.scored if run.outcome == Outcome.PRUNED]
    if stopped:
        ends = np.array([(epochs[-1], scores[-1]) for epochs, scores in stopped])
        axes.scatter(ends[:, 0], ends[:, 1], marker="v", s=26, color=GRAY, zorder=3, label="stopped")
    if study.best is not None and study.best.curve:
        label = f"best: run {study.best.number}"
        axes.plot(*_finite(study.best), color=ORANGE, linewidth=2.4, zorder=4, label=label)
    axes.set(xlabel="epoch", ylabel=_LABEL, xlim=(0.7, max(study.max_epochs, 1) + 0.3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if study.rungs and len(study.rungs) <= 6:
        axes.plot([], [], color=GRAY, linestyle=":", label="runs are compared")
    legend_beside(axes)
    return figure


def _finite(run: RunRecord) -> tuple[list[int], list[float]]:
    pairs = [(epoch, score) for epoch, score in run.curve.items() if math.isfinite(score)]
    return [epoch for epoch, _ in pairs], [score for _, score in pairs]


def _colors(study: StudyRecord) -> Normalize:
    scores = [run.score for run in study.finished if run.score is not None]
    return Normalize(min(scores, default=0.0), max(scores, default=1.0))


def draw_cost(study: StudyRecord) -> Figure | None:
    """Draw score against training time, and the runs that nothing cheaper beats; None without times."""
    known = [run for run in study.scored if run.seconds]
    if not known:
        return None
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    rule(axes)
    stopped = [run for run in known if run.score is None]
    finished = [run for run in known if run.score is not None]
    axes.scatter(
        training_seconds(stopped),
        last_scores(stopped),
        marker="v",
        s=26,
        facecolor="none",
        edgecolor=GRAY,
        label="stopped or running",
    )
    axes.scatter(training_seconds(finished), last_scores(finished), s=26, color=BLUE, label="finished")
    front = cheapest_best(finished)
    if front:
        axes.step(
            [run.seconds or 0.0 for run in front],
            [run.score or 0.0 for run in front],
            where="post",
            color=ORANGE,
            label="best for its cost",
        )
        for run in front:
            place = (run.seconds or 0.0, run.score or 0.0)
            axes.annotate(str(run.number), place, xytext=(4, 4), textcoords="offset points", color=ink())
    times = [run.seconds or 0.0 for run in known]
    if max(times) > 5 * min(times):
        axes.set_xscale("log")
    axes.set(xlabel="seconds of training", ylabel=_LABEL)
    legend_beside(axes)
    return figure


def draw_rungs(study: StudyRecord) -> Figure | None:
    """Draw early against final scores of the finished runs, one panel per rung; None with too few runs."""
    ranks = [rank for rank in rung_ranks(study) if rank.correlation is not None]
    if not ranks:
        return None
    figure = Figure(figsize=(min(WIDTH, 2.8 * len(ranks) + 0.4), 2.8), layout="constrained")
    panels = figure.subplots(1, len(ranks), squeeze=False, sharey=True)[0]
    for axes, rank in zip(panels, ranks, strict=True):
        rule(axes)
        early = np.array([run.curve.get(rank.epoch, math.nan) for run in study.finished])
        axes.scatter(early, last_scores(study.finished), s=18, color=BLUE)
        axes.set(
            title=f"rank correlation {rank.correlation:.2f}, {rank.runs} runs",
            xlabel=f"after epoch {rank.epoch}",
        )
    panels[0].set_ylabel("final score")
    return figure


def color_bar(figure: Figure, axes: Axes, norm: Normalize) -> None:
    """Add the scale of scores to a figure."""
    mappable = LineCollection([], cmap=scores_map(), norm=norm)
    bar = figure.colorbar(mappable, ax=axes, pad=0.01, aspect=30)
    bar.set_label(_LABEL)
    bar.outline.set_visible(False)
