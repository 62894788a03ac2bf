"""Importances as text: on a terminal, on the report's page, in files."""

import math
from typing import Any

from rich.table import Table

from hpo.forests import SHUFFLES
from hpo.importance import Importance, Importances


def importance_table(found: Importances, *, top: int = 10) -> Table:
    """Return the most important hyperparameters as a table to print, with what speaks against it below."""
    table = Table(
        title=f"importance of hyperparameters, {describe(found)}",
        title_justify="left",
        caption="\n".join(found.warnings) or None,
        caption_justify="left",
    )
    for column in HEADINGS:
        table.add_column(column, justify="left" if column == HEADINGS[0] else "right")
    for row in found.rows[:top]:
        table.add_row(*cells(row))
    return table


HEADINGS = ("hyperparameter", "forest", "above chance", "correlation", "Optuna")


def cells(row: Importance) -> list[str]:
    """Return one hyperparameter's line as text, in the order of ``HEADINGS``."""
    return [
        row.name,
        f"{row.forest:.3f} +- {row.spread:.3f}",
        f"{round(SHUFFLES * row.above_chance)} of {SHUFFLES}",
        "-" if row.correlation is None else f"{row.correlation:+.3f}",
        "-" if row.optuna is None else f"{row.optuna:.3f}",
    ]


def describe(found: Importances) -> str:
    """Return in words what a ranking rests on."""
    fit = "" if math.isnan(found.fit) else f", out-of-bag R2 {found.fit:.2f} +- {found.fit_spread:.2f}"
    return f"from {found.finished} finished and {found.stopped} stopped runs{fit}"


def plain_rows(found: Importances) -> list[dict[str, Any]]:
    """Return one dictionary of plain values per hyperparameter, for files."""
    return [
        {
            "hyperparameter": row.name,
            "forest": row.forest,
            "spread": row.spread,
            "above_chance": row.above_chance,
            "correlation": row.correlation,
            "optuna": row.optuna,
        }
        for row in found.rows
    ]
