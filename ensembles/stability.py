"""How much a seed matters: the score of each, their mean and their spread, as in the paper's Table 6."""

from dataclasses import dataclass

import numpy as np
from rich.table import Table

from ensembles.analysis import Analysis
from ensembles.evidence import METRICS, Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """Scores over seeds.

    Attributes:
        metric: which correlation.
        scores: of each member, by name.
        mean: over members.
        sd: sample standard deviation; NaN for a single member.
    """

    metric: Metric
    scores: dict[str, float]
    mean: float
    sd: float


def stability(analysis: Analysis, metric: Metric) -> Stability:
    """Return the scores of the members and how they spread.

    Source:
        Turishcheva et al. 2024, Table 6: sample standard deviation over 14 seeds.
    """
    scores = {member.member: member.score[metric].value for member in analysis.members}
    values = np.array(list(scores.values()))
    sd = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return Stability(metric=metric, scores=scores, mean=float(values.mean()), sd=sd)


def stability_table(analysis: Analysis) -> Table:
    """Return the table: one row per member, then mean and standard deviation."""
    by_metric = [stability(analysis, metric) for metric in METRICS]
    table = Table(title="Stability over seeds", title_justify="left")
    table.add_column("seed")
    for column in ("single trial", "to average"):
        table.add_column(column, justify="right")
    for member in by_metric[0].scores:
        table.add_row(member.removeprefix("seed-"), *(f"{of.scores[member]:.4f}" for of in by_metric))
    table.add_section()
    table.add_row("mean", *(f"{of.mean:.4f}" for of in by_metric))
    table.add_row("sd", *(f"{of.sd:.4f}" for of in by_metric))
    return table
