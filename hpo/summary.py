"""What a search has found: best runs, the published one, the noise ceiling, what mattered, what it took."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table

from hpo.ceiling import MEANING, kept_ceiling
from hpo.confirmation import CONFIRMATION_HEADINGS, FOUND, Confirmed, confirmation_cells
from hpo.importance import importances
from hpo.importance_tables import importance_table
from hpo.study import Study, outcome_of, ranked

SHOWN = 5


def summarize(study: Study, console: Console, *, files: Sequence[Path], root: Path) -> None:
    """Print the best runs, how all of them ended, what mattered and what to do next.

    Args:
        study: what was searched.
        console: where to print.
        files: written by the search.
        root: folder of studies.
    """
    trials = study.trials()
    best = ranked(trials)
    if best:
        console.print(best_table(study, best[:SHOWN]))
    lines = [*_found(study, best, trials), _cost(study, trials)]
    lines += [f"written: {path}" for path in files]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    found = importances(trials)
    if found.rows:
        console.print(importance_table(found))
    else:
        console.print(f"importance of hyperparameters: {found.warnings[0]}", highlight=False, soft_wrap=True)
    for line in _next(study, best, root):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _found(study: Study, best: Sequence[FrozenTrial], trials: Sequence[FrozenTrial]) -> list[str]:
    if not best:
        return ["no run has finished"]
    lines = [f"best: run {best[0].number}, {best[0].values[0]:.4f}"]
    published = trials[0]
    if published.system_attrs.get("fixed_params") is not None and published.values:
        change = (
            "the best itself" if best[0].number == 0 else f"{best[0].values[0] - published.values[0]:+.4f}"
        )
        lines.append(f"published values: run 0, {published.values[0]:.4f} ({change})")
    ceiling = kept_ceiling(study.folder)
    if ceiling is not None:
        lines.append(f"noise ceiling: {ceiling:.4f}, {MEANING}")
    return lines


def _cost(study: Study, trials: Sequence[FrozenTrial]) -> str:
    outcomes = Counter(outcome_of(trial) for trial in trials)
    epochs = sum(len(trial.intermediate_values) for trial in trials)
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    runs = len(trials) - outcomes["infeasible"]
    return (
        f"{counted}; {epochs} epochs instead of {runs * study.space.base.epochs}, "
        f"{seconds / 60:.1f} min of training"
    )


def _next(study: Study, best: Sequence[FrozenTrial], root: Path) -> list[str]:
    at = "" if root == Path("runs") else f" --root {root}"
    if not best:
        return []
    return [
        "next:",
        f"  python hpo/search.py reproduce {study.folder.name} {best[0].number}{at}",
        f"  python ensembles/build.py study {study.folder.name} --top {min(len(best), SHOWN)}{at}",
    ]


def best_table(study: Study, trials: Sequence[FrozenTrial]) -> Table:
    """Return the best runs as a table to print."""
    table = Table(
        title=f"{study.folder.name}: best runs, hold-out single-trial correlation", title_justify="left"
    )
    for column in ("run", "correlation", "epochs", "batch", "core lr", "readout lr"):
        table.add_column(column, justify="right")
    for trial in trials:
        table.add_row(*_row(trial))
    return table


def confirmation_table(rows: Sequence[Confirmed]) -> Table:
    """Return what further seeds say about the best runs, the best mean first."""
    table = Table(
        title="confirmed with further seeds, which chose nothing",
        title_justify="left",
        caption=FOUND,
        caption_justify="left",
    )
    for column in CONFIRMATION_HEADINGS:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*confirmation_cells(row))
    return table


def write_rows(trials: Sequence[FrozenTrial], path: Path) -> Path:
    """Write one row per run: number, outcome, score, epochs, seconds, hyperparameters."""
    names = sorted({name for trial in trials for name in trial.params})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "outcome", "score", "epochs", "last_score", "seconds", "reason", *names])
        for trial in trials:
            curve = trial.intermediate_values
            writer.writerow(
                [
                    trial.number,
                    outcome_of(trial),
                    trial.values[0] if trial.values else "",
                    len(curve),
                    curve[max(curve)] if curve else "",
                    trial.user_attrs.get("seconds", ""),
                    trial.user_attrs.get("reason", ""),
                    *[trial.params.get(name, "") for name in names],
                ]
            )
    return path


def _row(trial: FrozenTrial) -> list[str]:
    names = ("loader.batch_size", "optimizer.core_lr", "optimizer.readout_lr")
    values = [trial.params.get(name, "-") for name in names]
    shown = [f"{value:.2g}" if isinstance(value, float) else str(value) for value in values]
    return [str(trial.number), f"{trial.values[0]:.4f}", str(len(trial.intermediate_values)), *shown]
