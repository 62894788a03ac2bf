"""What a search has found: best runs, the published one, the noise ceiling, what mattered, what it took."""

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table

from data.recording import Recording, Tier
from hpo.confirmation import Confirmed
from hpo.importance import importance_table, importances
from hpo.study import Study, outcome_of, ranked
from training.ceiling import Ceiling, CeilingAccumulator
from training.ceiling import summarize as pool

SHOWN = 5


def summarize(
    study: Study, recordings: Sequence[Recording], console: Console, *, files: Sequence[Path], root: Path
) -> None:
    """Print the best runs, how all of them ended, what mattered and what to do next.

    Args:
        study: what was searched.
        recordings: what it was searched on.
        console: where to print.
        files: written by the search.
        root: folder of studies.
    """
    trials = study.trials()
    best = ranked(trials)
    if best:
        console.print(best_table(study, best[:SHOWN]))
    lines = [*_found(best, trials, recordings), _cost(study, trials)]
    lines += [f"written: {path}" for path in files]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(best) > 1:
        console.print(importance_table(importances(trials)))
    for line in _next(study, best, root):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _found(
    best: Sequence[FrozenTrial], trials: Sequence[FrozenTrial], recordings: Sequence[Recording]
) -> list[str]:
    if not best:
        return ["no run has finished"]
    lines = [f"best: run {best[0].number}, {best[0].values[0]:.4f}"]
    published = trials[0]
    if published.system_attrs.get("fixed_params") is not None and published.values:
        change = (
            "the best itself" if best[0].number == 0 else f"{best[0].values[0] - published.values[0]:+.4f}"
        )
        lines.append(f"published values: run 0, {published.values[0]:.4f} ({change})")
    ceiling = noise_ceiling(recordings)
    if ceiling is not None:
        lines.append(
            f"noise ceiling: {ceiling:.4f}, the best single-trial correlation of a predictor of the video "
            "alone, on the oracle tier, where videos repeat; one that sees behavior can exceed it"
        )
    return lines


def noise_ceiling(recordings: Sequence[Recording]) -> float | None:
    """Return the pooled ceiling of the single-trial correlation, None without repeated videos."""
    ceilings = [ceiling for recording in recordings if (ceiling := _ceiling(recording)) is not None]
    return pool(ceilings).single_trial_max if ceilings else None


def _ceiling(recording: Recording) -> Ceiling | None:
    repeats = defaultdict(list)
    for trial in recording.trials:
        if trial.tier is Tier.ORACLE and trial.has_responses:
            repeats[trial.video_id].append(trial)
    repeats = defaultdict(list, {video: same for video, same in repeats.items() if len(same) > 1})
    if not repeats:
        return None
    accumulator = CeilingAccumulator(recording.session, len(recording.neurons.ids))
    for video, same in repeats.items():
        shown = [recording.responses(trial) for trial in same]
        accumulator.update(
            [responses.astype(np.float64) for responses in shown if responses is not None], video_id=video
        )
    return accumulator.result()


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
        caption="'found' is the score that chose the run, too high for that reason",
        caption_justify="left",
    )
    for column in ("run", "mean", "sd", "lowest", "highest", "seeds", "found"):
        table.add_column(column, justify="right")
    for row in rows:
        shown = [row.mean, row.spread, min(row.scores, default=None), max(row.scores, default=None)]
        failed = f" ({row.failures} failed)" if row.failures else ""
        table.add_row(
            str(row.run),
            *("-" if value is None else f"{value:.4f}" for value in shown),
            f"{len(row.scores)}{failed}",
            f"{row.found:.4f}",
        )
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
