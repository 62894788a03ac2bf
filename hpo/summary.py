"""What a search has found, as a table."""

import csv
from collections import Counter
from pathlib import Path

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table

from hpo.study import Study, outcome_of, ranked

SHOWN = 5


def summarize(study: Study, console: Console, *, table: Path) -> None:
    """Print the best runs, how all of them ended and what to do next.

    Args:
        study: what was searched.
        console: where to print.
        table: file of all runs.
    """
    trials = study.trials()
    best = ranked(trials)
    if best:
        console.print(_best_table(study, best[:SHOWN]))
    outcomes = Counter(outcome_of(trial) for trial in trials)
    epochs = sum(len(trial.intermediate_values) for trial in trials)
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    lines = [
        f"{counted}; {epochs} epochs instead of {len(trials) * study.space.base.epochs}, "
        f"{seconds / 60:.1f} min of training",
        f"all runs: {table}",
    ]
    if best and best[0].number != 0 and trials[0].values:
        lines.insert(
            0,
            f"published values (run 0): {trials[0].values[0]:.4f}; best (run {best[0].number}): "
            f"{best[0].values[0]:.4f}",
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _best_table(study: Study, trials: list[FrozenTrial]) -> Table:
    table = Table(
        title=f"{study.folder.name}: best runs, hold-out single-trial correlation", title_justify="left"
    )
    for column in ("run", "correlation", "epochs", "batch", "core lr", "readout lr"):
        table.add_column(column, justify="right")
    for trial in trials:
        table.add_row(*_row(trial))
    return table


def write_table(study: Study) -> Path:
    """Write one row per run: number, outcome, score, epochs, seconds, hyperparameters."""
    return write_rows(study.trials(), study.folder / "runs.csv")


def write_rows(trials: list[FrozenTrial], path: Path) -> Path:
    """Write one row per run to a file."""
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
