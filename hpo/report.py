"""The report of a study: one page without network, and tables of runs, curves and importances."""

import csv
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from data.page import picture, section, shown, table, whole
from data.svg import styled
from hpo.ceiling import MEANING
from hpo.confirmation import CONFIRMATION_HEADINGS, FOUND, confirmation_cells
from hpo.figures.hyperparameters import (
    draw_correlations,
    draw_importances,
    draw_parallel,
    draw_slices,
    ordered_names,
)
from hpo.figures.progress import draw_cost, draw_curves, draw_history, draw_rungs
from hpo.importance import Importances, importances
from hpo.importance_tables import HEADINGS, cells, describe, plain_rows
from hpo.report_data import RunRecord, StudyRecord, cheapest_best, read_study, rung_ranks
from training.names import flatten
from training.results import Outcome

RUNS_FILE, CURVES_FILE, IMPORTANCES_FILE = "runs.csv", "curves.csv", "importances.csv"


def write_report(study_folder: Path, out: Path | None = None) -> Path:
    """Write a study's report, also while the study is driven.

    Args:
        study_folder: of the study; it is only read.
        out: the page; ``report.html`` in the study's folder by default. The tables are written beside it.

    Returns:
        The page.

    Raises:
        StudyError: there is no study in the folder.
    """
    study = read_study(study_folder)
    found = importances(study.trials)
    page = out or study_folder / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_tables(study, found, page.parent)
    _replace(page, render(study, found))
    return page


def write_tables(study: StudyRecord, found: Importances, folder: Path) -> list[Path]:
    """Write runs, learning curves and importances as CSV."""
    names = sorted({name for run in study.runs for name in run.params})
    head = ["run", "outcome", "score", "epochs", "last_score", "seconds", "reason"]
    runs = [
        [
            run.number,
            run.outcome,
            *_blank(run.score),
            len(run.curve),
            *_blank(run.last_score, run.seconds, run.reason),
            *[run.params.get(name, "") for name in names],
        ]
        for run in study.runs
    ]
    curves = [[run.number, epoch, score] for run in study.runs for epoch, score in run.curve.items()]
    columns = ["hyperparameter", "forest", "spread", "above_chance", "correlation", "optuna"]
    shares = [_blank(*[row[column] for column in columns]) for row in plain_rows(found)]
    return [
        _write_csv(folder / RUNS_FILE, [*head, *names], runs),
        _write_csv(folder / CURVES_FILE, ["run", "epoch", "score"], curves),
        _write_csv(folder / IMPORTANCES_FILE, columns, shares),
    ]


def _blank(*values: Any) -> list[Any]:
    return ["" if value is None else value for value in values]


def _write_csv(path: Path, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heading)
        writer.writerows(rows)
    return new.replace(path)


def _replace(path: Path, text: str) -> None:
    # Whoever has the page open while the search runs never loads half of one.
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def render(study: StudyRecord, found: Importances) -> str:
    """Return the page."""
    names = ordered_names(study, found)
    with styled():
        sections = [
            section("Best run", _best(study)),
            section("Scores", picture(draw_history(study), "scores of all runs in their order"), HISTORY),
            section("Learning curves", picture(draw_curves(study), "learning curves of all runs"), CURVES),
            section("Do early scores tell the end?", _rungs(study), RUNGS),
            section("Importance of hyperparameters", _importance(found), IMPORTANCE),
            section(
                "Runs as lines",
                picture(draw_parallel(study, names), "parallel coordinates of all runs"),
                PARALLEL,
            ),
            section(
                "Score over each hyperparameter",
                picture(draw_slices(study, names), "score over every hyperparameter"),
                SLICES,
            ),
            section(
                "Correlations",
                picture(draw_correlations(study), "correlation of hyperparameters and score"),
                CORRELATIONS,
            ),
            section("Score and cost", _cost(study), COST),
            section("All runs", _runs(study, names)),
        ]
    return whole(
        title=f"Study {study.folder.resolve().name}", summary=_summary(study), body="\n".join(sections)
    )


HISTORY = (
    "A stopped run stands at its last score, which more epochs would have raised; only finished runs compete."
)
CURVES = (
    "Dotted lines are the epochs at which runs are compared; a triangle is where one was stopped. Finished "
    "runs are the lighter the better."
)
RUNGS = (
    "Rank correlation (Spearman) between the score after an early epoch and the final one, among runs that "
    "finished. Those that were stopped have no final score, so this looks only at the runs that stopping "
    "let through. A low value says that stopping at this epoch is close to guessing."
)
IMPORTANCE = (
    "As Table 4 of the paper: share of what a random forest explains, and linear correlation with the score. "
    "Stopped runs count with their last score times the growth of finished runs from that epoch on. "
    "<q>Above chance</q>: in how many of 20 forests a hyperparameter explains more than a shuffled copy of "
    "itself; one in 20 that does not matter gets there by luck. The spread is that over forests, not over "
    "other runs. Optuna: PED-ANOVA, what the best runs have in common."
)
PARALLEL = (
    "The most important hyperparameters from left to right. Gray runs were stopped; the best is orange."
)
SLICES = "Filled: finished; triangles: last score of stopped runs; orange: the best. Most important first."
CORRELATIONS = (
    "Linear correlation between ordered hyperparameters and with the score, over runs with a score."
)
COST = "Numbered runs are those that no cheaper run beats."


def _summary(study: StudyRecord) -> str:
    counts = Counter(run.outcome for run in study.runs)
    epochs = sum(len(run.curve) for run in study.runs)
    full = study.max_epochs * sum(run.outcome != Outcome.INFEASIBLE for run in study.runs)
    seconds = sum(run.seconds or 0.0 for run in study.runs)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "none yet"
    lines = [f"Space {study.name}, {study.scale} scale. Runs: {counted}."]
    lines.append(
        f"{epochs} epochs, where runs without early stopping take {full}; {_duration(seconds)} of training."
    )
    if counts["running"]:
        lines.append("The search has not ended: this page shows what was reported so far.")
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _best(study: StudyRecord) -> str:
    best = study.best
    if best is None:
        return '<p class="missing">No run has finished yet.</p>'
    published = next((run for run in study.finished if run.number == study.published), None)
    compared = ""
    if published is best:
        compared = ", with the published values"
    elif published is not None:
        compared = f"; the published values (run {published.number}) have {published.score:.4f}"
    ceiling = (
        "" if study.ceiling is None else f"<p>Noise ceiling: {study.ceiling:.4f}, {escape(MEANING)}.</p>"
    )
    chosen_on = {"oracle": "oracle tier"}.get(study.identity.get("select_on", ""), "hold-out fold")
    head = (
        f"<p>Run <b>{best.number}</b>: {best.score:.4f}{compared}. Single-trial correlation on the "
        f"{chosen_on}, which chose this run and so does not grade it.</p>"
    )
    return head + ceiling + _confirmed(study) + _commands(study, best) + _settings(study, best, published)


def _confirmed(study: StudyRecord) -> str:
    if not study.confirmed:
        return ""
    rows = [confirmation_cells(row) for row in study.confirmed]
    text = f"The best runs again with further seeds, which chose nothing; sd over the seeds. {escape(FOUND)}."
    return f'<p class="note">{text}</p>' + table(CONFIRMATION_HEADINGS, rows)


def _commands(study: StudyRecord, best: RunRecord) -> str:
    folder = study.folder.resolve()
    # By name where studies lie in the folder of studies, else by folder.
    named = folder.parent.name == "studies"
    where = [folder.name, best.number, "--root", folder.parent.parent] if named else [folder, best.number]
    lines = [f"python hpo/search.py reproduce {shlex.join(map(str, where))}"]
    spec = study.spec(best)
    if spec is not None:
        changed = " ".join(
            f"--set {shlex.quote(f'{name}={text}')}" for name, text in study.settings(best).items()
        )
        what = f"{spec.family} --recordings DIR --scale {study.scale} --seed {spec.seed}"
        lines.append(f"python training/train.py {what} {changed}")
    return "".join(f"<pre>{escape(line)}</pre>" for line in lines)


def _settings(study: StudyRecord, best: RunRecord, published: RunRecord | None) -> str:
    spec = study.spec(best)
    values = dict(best.params) if spec is None else flatten(spec)
    searched = table(
        ["searched", f"run {best.number}", "published"],
        [
            [name, shown(values[name]), shown(published.params.get(name, "-")) if published else "-"]
            for name in sorted(best.params)
        ],
    )
    rest = [[name, shown(value)] for name, value in values.items() if name not in best.params]
    if not rest:
        return searched
    return (
        searched + f"<details><summary>everything else</summary>{table(['fixed', 'value'], rest)}</details>"
    )


def _rungs(study: StudyRecord) -> str:
    rows = [
        [str(rank.epoch), "-" if rank.correlation is None else f"{rank.correlation:.2f}", str(rank.runs)]
        for rank in rung_ranks(study)
    ]
    ranks = table(["after epoch", "rank correlation", "finished runs"], rows)
    return ranks + picture(draw_rungs(study), "early against final scores")


def _importance(found: Importances) -> str:
    warnings = "".join(f'<p class="warning">{escape(warning)}.</p>' for warning in found.warnings)
    head = f"<p>Ranking {escape(describe(found))}.</p>"
    if not found.rows:
        return head + warnings
    drawn = picture(draw_importances(found), "importance of hyperparameters")
    numbers = table(HEADINGS, [cells(row) for row in found.rows])
    return head + warnings + drawn + f"<details><summary>numbers</summary>{numbers}</details>"


def _cost(study: StudyRecord) -> str:
    rows = [
        [str(run.number), f"{run.score:.4f}", f"{run.seconds:.1f}", str(len(run.curve))]
        for run in cheapest_best(study.finished)
    ]
    numbers = table(["run", "score", "seconds", "epochs"], rows) if rows else ""
    return picture(draw_cost(study), "score against training time") + numbers


def _runs(study: StudyRecord, names: Sequence[str]) -> str:
    ranked = [*study.finished, *[run for run in study.runs if run.score is None]]
    heading = ["run", "outcome", "score", "last score", "epochs", "seconds", "reason", *names]
    rows = [
        [
            str(run.number),
            run.outcome,
            "" if run.score is None else f"{run.score:.4f}",
            "" if run.last_score is None else f"{run.last_score:.4f}",
            str(len(run.curve)),
            "" if run.seconds is None else f"{run.seconds:.1f}",
            run.reason or "",
            *[shown(run.params.get(name, "")) for name in names],
        ]
        for run in ranked
    ]
    return table(heading, rows)
