"""The numbers of an analysis as tables: for a terminal, and as rows for files and pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensembles.analysis import PROTOCOLS, Analysis, ByMetric
from ensembles.evidence import METRICS
from ensembles.intervals import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of text.

    Attributes:
        title: what it shows.
        note: how to read it.
        columns: headings; all but the first hold numbers.
        rows: cells.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def text_tables(analysis: Analysis) -> list[TextTable]:
    """Return all tables of a report, the most important one first."""
    tables = [_systems(analysis), _parts(analysis, "mouse"), _members(analysis)]
    if len(analysis.chosen.by_stimulus) > 1:
        tables.insert(2, _parts(analysis, "stimulus"))
    return tables


def print_report(analysis: Analysis, console: Console) -> None:
    """Print verdict and tables."""
    for line in verdict(analysis):
        console.print(escape(line), highlight=False)
    for table in text_tables(analysis):
        shown = Table(
            title=escape(table.title),
            title_justify="left",
            caption=escape(table.note),
            caption_justify="left",
        )
        for place, column in enumerate(table.columns):
            shown.add_column(escape(column), justify="right" if place else "left")
        for row in table.rows:
            shown.add_row(*(escape(cell) for cell in row))
        console.print(shown)


def verdict(analysis: Analysis) -> list[str]:
    """Return what was found, in sentences."""
    choice = analysis.choice
    used, pool = len(choice.used), len(choice.members)
    how = "because it was asked for (forced)" if choice.forced else "by the gate's decision"
    gain = analysis.gain["single_trial"]
    elsewhere = f" ({analysis.chosen_on})" if analysis.protocol == "other_clips" else ""
    lines = [
        f"The ensemble is the blend '{choice.blend}' of {used} of {pool} members, {how}.",
        f"It scores {show(analysis.chosen.overall['single_trial'])} on single trials and "
        f"{show(analysis.chosen.overall['to_average'])} to average on {analysis.num_clips} clips of "
        f"{analysis.reported_on}: {PROTOCOLS[analysis.protocol]}{elsewhere}.",
    ]
    if choice.blend != "mean":
        lines.append(f"Its gain over the mean is {show(gain, sign=True)}.")
    if choice.gate is not None:
        lines.append(f"{choice.gate.words[0].upper()}{choice.gate.words[1:]}.")
    if choice.broken:
        names = ", ".join(f"{each.member} ({each.score:.4f})" for each in choice.broken)
        median = choice.broken[0].median
        lines.append(f"Dropped as broken, below 0.8 of the median score {median:.4f}: {names}.")
    if analysis.ceiling is not None:
        lines.append(
            f"That is {analysis.ceiling.share_single_trial:.0%} of the noise ceiling of single trials and "
            f"{analysis.ceiling.share_to_average:.0%} of that to average."
        )
    elif analysis.ceiling_note:
        lines.append(f"The share of the noise ceiling is unknown: {analysis.ceiling_note}.")
    if analysis.num_constant:
        lines.append(f"{analysis.num_constant} neurons never change and count as 0.")
    if analysis.num_masked:
        lines.append(f"{analysis.num_masked} pairs of neuron and frame have no response and are left out.")
    return lines


def show(interval: Interval, *, sign: bool = False) -> str:
    """Return a value with its 95 % interval."""
    form = "+.4f" if sign else ".4f"
    if math.isnan(interval.error):
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def _short(interval: Interval) -> str:
    if math.isnan(interval.error):
        return f"{interval.value:.4f}"
    return f"{interval.value:.4f} +- {interval.high - interval.value:.4f}"


def _systems(analysis: Analysis) -> TextTable:
    rows = [_row(system.title, system.overall) for system in analysis.systems]
    rows.append(_row("gain over the mean (paired)", analysis.gain, sign=True))
    rows.append(_row("gain over the best single (paired)", analysis.gain_over_best, sign=True))
    rows.append(
        (
            "chosen, on the clips that chose (optimistic)",
            f"{analysis.in_sample['single_trial']:.4f}",
            f"{analysis.in_sample['to_average']:.4f}",
        )
    )
    if analysis.ceiling is not None:
        rows.append(
            ("noise ceiling", f"{analysis.ceiling.single_trial:.4f}", f"{analysis.ceiling.to_average:.4f}")
        )
    return TextTable(
        title="Scores",
        note=f"Correlation, mean over {sum(analysis.num_neurons.values())} neurons; 95 % t intervals of the "
        f"jackknife over {analysis.num_clips} clips.",
        columns=("", "single trials", "to average"),
        rows=tuple(rows),
    )


def _parts(analysis: Analysis, kind: str) -> TextTable:
    parts = [s.by_session if kind == "mouse" else s.by_stimulus for s in analysis.systems]
    titles = {"single_trial": "single trials", "to_average": "to average"}
    columns = [kind, *(f"{system.title}, {titles[m]}" for m in METRICS for system in analysis.systems)]
    rows = [(name, *(_short(of[name][m]) for m in METRICS for of in parts)) for name in parts[0]]
    return TextTable(
        title=f"By {kind}",
        note="With half the width of the 95 % interval over the clips of the row.",
        columns=tuple(columns),
        rows=tuple(rows),
    )


def _members(analysis: Analysis) -> TextTable:
    rows = []
    for member in sorted(analysis.members, key=lambda each: -each.score["single_trial"].value):
        lost = ("-", "-")
        if member.contribution is not None:
            lost = (
                show(member.contribution["single_trial"], sign=True),
                show(member.contribution["to_average"], sign=True),
            )
        rows.append(
            (
                f"{member.member} (broken)" if member.is_broken else member.member,
                member.group,
                f"{member.weight:.4f}",
                show(member.score["single_trial"]),
                show(member.score["to_average"]),
                *lost,
                f"{member.cost:.4g}",
            )
        )
    return TextTable(
        title="Members",
        note="Lost: what the ensemble loses without the member, its weight shared among the others. "
        f"Mean correlation of two members {analysis.mean_correlation:.3f}: worth "
        f"{analysis.effective_number:.2f} uncorrelated ones.",
        columns=(
            "member",
            "architecture",
            "weight",
            "alone, single trials",
            "alone, to average",
            "lost, single trials",
            "lost, to average",
            f"cost ({analysis.cost_unit})",
        ),
        rows=tuple(rows),
    )


def _row(name: str, of: ByMetric, *, sign: bool = False) -> tuple[str, str, str]:
    return name, show(of["single_trial"], sign=sign), show(of["to_average"], sign=sign)


def score_rows(analysis: Analysis) -> list[Sequence[object]]:
    """Return all scores with their intervals, one row each, with a heading row."""
    rows: list[Sequence[object]] = [("system", "scope", "name", "metric", "score", "low", "high", "clips")]

    def add(system: str, scope: str, name: str, of: ByMetric) -> None:
        for metric, each in of.items():
            rows.append((system, scope, name, metric, each.value, each.low, each.high, each.num_clips))

    for system in analysis.systems:
        add(system.name, "all", "", system.overall)
        for name, of in system.by_session.items():
            add(system.name, "session", name, of)
        for name, of in system.by_stimulus.items():
            add(system.name, "stimulus", name, of)
    add("chosen minus mean", "all", "", analysis.gain)
    add("chosen minus best single", "all", "", analysis.gain_over_best)
    for member in analysis.members:
        add("member alone", "member", member.member, member.score)
        if member.contribution is not None:
            add("lost without member", "member", member.member, member.contribution)
    return rows


def member_rows(analysis: Analysis) -> list[Sequence[object]]:
    """Return members and weights, one row each, with a heading row."""
    head = ("member", "architecture", "weight", "broken", "single_trial", "to_average", "cost")
    return [
        head,
        *(
            (
                member.member,
                member.group,
                member.weight,
                member.is_broken,
                member.score["single_trial"].value,
                member.score["to_average"].value,
                member.cost,
            )
            for member in analysis.members
        ),
    ]


def correlation_rows(analysis: Analysis) -> list[Sequence[object]]:
    """Return the correlation of each two members' predictions, one row per member, with a heading row."""
    names = [member.member for member in analysis.members]
    rows = (
        (name, *(float(value) for value in of)) for name, of in zip(names, analysis.correlation, strict=True)
    )
    return [("member", *names), *rows]
