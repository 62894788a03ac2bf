"""What a search has found, as a table."""

import csv
from collections import Counter
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from hpo.study import Study

SHOWN = 5


def summarize(study: Study, console: Console) -> None:
    """Print the best runs, how all of them ended and what to do next; write ``runs.csv``."""
    trials = study.trials()
    finished = sorted(
        (trial for trial in trials if trial.state is TrialState.COMPLETE), key=lambda trial: -trial.values[0]
    )
    table = Table(title=f"{study.folder.name}: best runs, hold-out single-trial correlation")
    for column in ("run", "correlation", "epochs", "batch", "core lr", "embedding", "heads"):
        table.add_column(column, justify="right")
    for trial in finished[:SHOWN]:
        table.add_row(*_row(trial))
    console.print(table)
    outcomes = Counter(trial.user_attrs.get("outcome", trial.state.name.lower()) for trial in trials)
    epochs = sum(len(trial.intermediate_values) for trial in trials)
    console.print(
        f"{', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}; "
        f"{epochs} epochs, {len(trials) * study.space.base.epochs} without pruning",
        highlight=False,
    )
    published = next((trial for trial in finished if trial.number == 0), None)
    if published is not None and finished:
        console.print(
            f"the recipe's own values (run 0): {published.values[0]:.4f}; best: {finished[0].values[0]:.4f}",
            highlight=False,
        )
    path = write_table(study, trials)
    console.print(
        f"all runs: {path}\nnext: make ui   (curves and pictures of every run)\n"
        f"      make search ARGS='--runs {2 * max(len(trials), 10)}'   (goes on with this study)",
        highlight=False,
    )


def write_table(study: Study, trials: list[FrozenTrial]) -> Path:
    """Write one row per run: number, outcome, score, epochs, seconds, hyperparameters."""
    names = sorted({name for trial in trials for name in trial.params})
    path = study.folder / "runs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "outcome", "score", "epochs", "seconds", *names])
        for trial in trials:
            score = trial.values[0] if trial.values else ""
            attributes = trial.user_attrs
            writer.writerow(
                [
                    trial.number,
                    attributes.get("outcome", trial.state.name.lower()),
                    score,
                    len(trial.intermediate_values),
                    attributes.get("seconds", ""),
                    *[trial.params.get(name, "") for name in names],
                ]
            )
    return path


def _row(trial: FrozenTrial) -> list[str]:
    names = ("loader.batch_size", "optimizer.core_lr", "model.embedding_dim", "model.num_heads")
    values = [trial.params.get(name, "-") for name in names]
    shown = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in values]
    return [str(trial.number), f"{trial.values[0]:.4f}", str(len(trial.intermediate_values)), *shown]
