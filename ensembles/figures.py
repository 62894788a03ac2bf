"""Pictures of an analysis, as SVG that takes the page's own colors and font."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ensembles.analysis import Analysis, ByMetric, MemberScore
from ensembles.evidence import METRICS
from ensembles.intervals import Interval

# Okabe and Ito (2008): told apart with every kind of color vision, and readable on white and on black.
COLORS = {"best_single": "#e69f00", "mean": "#0072b2", "mean_of_all": "#56b4e9", "chosen": "#d55e00"}
MARKERS = {"best_single": "s", "mean": "o", "mean_of_all": "v", "chosen": "D"}
METRIC_TITLES = {"single_trial": "single trials", "to_average": "to average"}

# Stand-ins that become the page's colors, so that one picture serves light and dark pages.
_INK, _FAINT = "#010203", "#040506"
_WIDTH = 7.6

Draw = Callable[[Analysis], Figure]


def draw_scores(analysis: Analysis) -> Figure:
    """Draw best single member, mean and chosen blend with intervals, for both correlations."""
    figure = _figure(0.55 * len(analysis.systems) + 0.9)
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), METRICS, strict=True):
        for place, system in enumerate(reversed(analysis.systems)):
            _interval(axes, system.overall[metric], place, system.name)
        axes.set_yticks(range(len(analysis.systems)), [system.title for system in reversed(analysis.systems)])
        axes.set_ylim(-0.6, len(analysis.systems) - 0.4)
        axes.set_xlabel(f"correlation, {METRIC_TITLES[metric]}")
        axes.locator_params(axis="x", nbins=5)
        _plain(axes, grid="x")
    return figure


def draw_sessions(analysis: Analysis) -> Figure:
    """Draw the systems for each mouse, single trials."""
    return _draw_parts(analysis, [system.by_session for system in analysis.systems])


def draw_stimuli(analysis: Analysis) -> Figure:
    """Draw the systems for each stimulus class, single trials."""
    return _draw_parts(analysis, [system.by_stimulus for system in analysis.systems])


def draw_members(analysis: Analysis) -> Figure:
    """Draw what each member scores alone, its weight, and what the ensemble loses without it."""
    members = sorted(analysis.members, key=lambda each: each.score["single_trial"].value)
    figure = _figure(0.2 * len(members) + 0.9)
    score, weight, contribution = figure.subplots(1, 3, sharey=True, width_ratios=[1.2, 0.8, 1.2])
    for place, member in enumerate(members):
        color = _FAINT if member.is_broken else COLORS["mean"]
        _bar(score, member.score["single_trial"], place, color)
        weight.barh(place, member.weight, color=COLORS["chosen"], height=0.6)
        if member.contribution is not None:
            _bar(contribution, member.contribution["single_trial"], place, COLORS["chosen"])
    contribution.axvline(0, color=_INK, linewidth=0.7)
    score.set_yticks(range(len(members)), [_label(member) for member in members], fontsize=7)
    score.set_ylim(-0.7, len(members) - 0.3)
    for axes, label in ((score, "alone"), (weight, "weight"), (contribution, "lost without it")):
        axes.set_xlabel(label)
        axes.locator_params(axis="x", nbins=4)
        _plain(axes, grid="x")
    return figure


def draw_correlation(analysis: Analysis) -> Figure:
    """Draw the correlation between members' predictions."""
    num_members = len(analysis.members)
    side = min(_WIDTH, max(3.6, 0.19 * num_members + 2.4))
    figure = _figure(side - 0.4, width=side + 0.6)
    axes = figure.subplots()
    is_self = np.eye(num_members, dtype=bool) & (num_members > 1)
    shown = np.where(is_self, np.nan, analysis.correlation)
    image = axes.imshow(shown, cmap="cividis", interpolation="nearest")
    names = [member.member for member in analysis.members]
    axes.set_xticks(range(num_members), names, rotation=90, fontsize=6)
    axes.set_yticks(range(num_members), names, fontsize=6)
    figure.colorbar(image, ax=axes, label="correlation of predictions", shrink=0.8).outline.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def draw_curve(analysis: Analysis) -> Figure:
    """Draw the score against the number of members."""
    figure = _figure(2.8, width=5.2)
    axes = figure.subplots()
    counts = [point.num_members for point in analysis.curve]
    axes.fill_between(
        counts,
        [point.low for point in analysis.curve],
        [point.high for point in analysis.curve],
        color=COLORS["mean"],
        alpha=0.22,
        linewidth=0,
        label="tenth to ninetieth percentile",
    )
    axes.plot(
        counts,
        [point.score for point in analysis.curve],
        color=COLORS["mean"],
        marker="o",
        markersize=3,
        linewidth=1.4,
        label="mean of random members",
    )
    axes.plot(
        counts,
        [point.predicted for point in analysis.curve],
        color=_INK,
        linewidth=1,
        linestyle=(0, (4, 3)),
        label=f"predicted by r = {analysis.mean_correlation:.2f}",
    )
    axes.set(xlabel="members", ylabel="single-trial correlation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _plain(axes, grid="y")
    return figure


def draw_costs(analysis: Analysis) -> Figure:
    """Draw score against cost, with the front that nothing beats."""
    figure = _figure(2.8, width=5.2)
    axes = figure.subplots()
    axes.scatter(
        [p.cost for p in analysis.costs],
        [p.score for p in analysis.costs],
        s=6,
        color=_FAINT,
        linewidth=0,
        label="singles, pairs, grown means",
    )
    front = analysis.front
    axes.plot(
        [p.cost for p in front],
        [p.score for p in front],
        color=COLORS["chosen"],
        marker="D",
        markersize=3.5,
        linewidth=1.2,
        drawstyle="steps-post",
        label="no cheaper is better",
    )
    if len({p.cost for p in front}) > 1 and max(p.cost for p in front) > 20 * min(p.cost for p in front):
        axes.set_xscale("log")
    axes.set(xlabel=f"cost ({analysis.cost_unit})", ylabel="score")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _plain(axes, grid="y")
    return figure


def to_svg(draw: Draw, analysis: Analysis, *, name: str) -> str:
    """Return a picture as an SVG element in the colors and the font of the page around it.

    Args:
        draw: a function of this module.
        analysis: what it draws.
        name: makes the ids of this picture differ from those of others on the page.
    """
    buffer = io.StringIO()
    colors = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    fonts = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with mpl.rc_context({**colors, **fonts, "svg.hashsalt": name}):
        figure = draw(analysis)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)


def _draw_parts(analysis: Analysis, parts: Sequence[Mapping[str, ByMetric]]) -> Figure:
    names = list(parts[0])
    figure = _figure(0.42 * len(names) + 0.9)
    axes = figure.subplots()
    offsets = np.linspace(0.22, -0.22, len(analysis.systems))
    for system, of, offset in zip(analysis.systems, parts, offsets, strict=True):
        for place, name in enumerate(reversed(names)):
            interval = of[name]["single_trial"]
            _interval(axes, interval, place + offset, system.name, label=system.title if not place else None)
    axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=7)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("correlation, single trials")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _plain(axes, grid="x")
    return figure


def _interval(axes: Axes, interval: Interval, place: float, name: str, *, label: str | None = None) -> None:
    if interval.num_clips > 1:
        axes.plot([interval.low, interval.high], [place, place], color=COLORS[name], linewidth=1.8)
    axes.plot(interval.value, place, MARKERS[name], color=COLORS[name], markersize=6, label=label)


def _bar(axes: Axes, interval: Interval, place: int, color: str) -> None:
    if interval.num_clips > 1:
        axes.plot([interval.low, interval.high], [place, place], color=color, linewidth=1.2)
    axes.plot(interval.value, place, "o", color=color, markersize=3.5)


def _label(member: MemberScore) -> str:
    return f"{member.member} (broken)" if member.is_broken else member.member


def _figure(height: float, *, width: float = _WIDTH) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _plain(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(_FAINT)
    axes.tick_params(colors=_INK, which="both", length=2)
    axes.grid(axis=grid, color=_FAINT, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
