"""The report of an ensemble: one page with its pictures inside, and the numbers as CSV and JSON."""

import csv
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from data.array_files import write_bytes
from ensembles.analysis import Analysis
from ensembles.figures import (
    Draw,
    draw_correlation,
    draw_costs,
    draw_curve,
    draw_members,
    draw_scores,
    draw_sessions,
    draw_stimuli,
    to_svg,
)
from ensembles.report_tables import (
    TextTable,
    correlation_rows,
    member_rows,
    print_report,
    score_rows,
    text_tables,
    verdict,
)

__all__ = ["print_report", "write_report"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --faint: #9a9a9a; --paper: #ffffff; --panel: #f4f4f2;
  --rule: #dddddd; --accent: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e3; --faint: #8b8b8b; --paper: #161616;
  --panel: #212121; --rule: #3a3a3a; --accent: #ff9a57; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.2rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; }
p { margin: .35rem 0; max-width: 48rem; } .note { color: var(--faint); font-size: .88rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { background: var(--panel); border-radius: .5rem; padding: .7rem 1rem; flex: 1 1 11rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: .85rem; }
.warning { border-left: 4px solid var(--accent); padding-left: .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th { font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
figure { margin: .8rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: .88rem; max-width: 48rem; }
"""


def write_report(analysis: Analysis, folder: Path, *, title: str = "Ensemble") -> Path:
    """Write report.html, scores.csv, members.csv, correlation.csv and analysis.json.

    Args:
        analysis: what is reported.
        folder: where to; made if it does not exist.
        title: of the page.

    Returns:
        The page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "scores.csv", _csv(score_rows(analysis)))
    write_bytes(folder / "members.csv", _csv(member_rows(analysis)))
    write_bytes(folder / "correlation.csv", _csv(correlation_rows(analysis)))
    write_bytes(folder / "analysis.json", (json.dumps(analysis.to_plain(), indent=1) + "\n").encode())
    page = folder / "report.html"
    write_bytes(page, render_page(analysis, title=title).encode())
    return page


def render_page(analysis: Analysis, *, title: str) -> str:
    """Return the page; it needs no other file and no network."""
    systems, *others = text_tables(analysis)
    by_title = {table.title: table for table in others}
    by_stimulus = by_title.get("By stimulus")
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in verdict(analysis)),
        _forced(analysis),
        _tiles(analysis),
        _section(systems, _picture(analysis, draw_scores, "scores", "Bars: 95 % intervals over clips.")),
        _section(by_title["By mouse"], _picture(analysis, draw_sessions, "mice", "")),
        _section(by_stimulus, _picture(analysis, draw_stimuli, "stimuli", "")) if by_stimulus else "",
        _section(
            by_title["Members"],
            _picture(analysis, draw_members, "members", "Sorted by their score alone, single trials."),
        ),
        "<h2>How different the members are</h2>",
        _picture(analysis, draw_correlation, "correlation", "Mean over neurons, on the reported clips."),
        "<h2>How many members are enough</h2>",
        _picture(
            analysis,
            draw_curve,
            "curve",
            "Members added in random order; dashed: what the mean correlation of two members predicts.",
        ),
        "<h2>Score against cost</h2>",
        _picture(
            analysis,
            draw_costs,
            "costs",
            "The reported clips also picked these members, so small differences are optimistic.",
        ),
        _fronts(analysis),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _tiles(analysis: Analysis) -> str:
    chosen, gain = analysis.chosen.overall, analysis.gain_over_best["single_trial"]
    tiles = [
        (f"{chosen['single_trial'].value:.4f}", "single-trial correlation"),
        (f"{chosen['to_average'].value:.4f}", "correlation to average"),
        (f"{gain.value:+.4f}", "over the best single member"),
        (f"{len(analysis.choice.used)} of {len(analysis.members)}", "members used"),
    ]
    if analysis.ceiling is not None:
        tiles.append((f"{analysis.ceiling.share_single_trial:.0%}", "of the single-trial noise ceiling"))
    shown = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    return f'<div class="tiles">{shown}</div>'


def _forced(analysis: Analysis) -> str:
    if not analysis.choice.forced:
        return ""
    blend = escape(analysis.choice.blend)
    return f'<p class="warning">The blend {blend} was forced: it was asked for, whatever the gate says.</p>'


def _section(table: TextTable, picture: str) -> str:
    return f"<h2>{escape(table.title)}</h2>{picture}{_table(table)}"


def _table(table: TextTable) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="note">{escape(table.note)}</p>'
    )


def _picture(analysis: Analysis, draw: Draw, name: str, caption: str) -> str:
    noted = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{to_svg(draw, analysis, name=name)}{noted}</figure>"


def _fronts(analysis: Analysis) -> str:
    rows = tuple(
        (_names(point.members), str(len(point.members)), f"{point.cost:.4g}", f"{point.score:.4f}")
        for point in analysis.front
    )
    return _table(
        TextTable(
            title="",
            note="Means that nothing cheaper beats.",
            columns=("members", "number", f"cost ({analysis.cost_unit})", "score (optimistic)"),
            rows=rows,
        )
    )


def _names(members: Sequence[str]) -> str:
    return ", ".join(members[:4]) + (f" and {len(members) - 4} more" if len(members) > 4 else "")


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
