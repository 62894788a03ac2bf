"""How close importances from one search come to the true ones, by how its stopped runs are counted."""

import math
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from rich.table import Table

from benchmarks.searching.methods import METHODS
from benchmarks.searching.searches import search
from benchmarks.searching.surfaces import Crossing, Surface
from hpo.importance import StoppedRuns, importances
from hpo.space import Ask
from hpo.spaces import vivit

Rating = Mapping[str, tuple[float, float, float]]
"""For each way to count stopped runs: correlation of the shares with the true ones, how many of the true
first three are among the first three, and out-of-bag R2."""


def rate_importances(crossing: Crossing, seed: int, *, budget: int) -> Rating:
    """Return how close importances after one search come to those of 1,000 random points without noise."""
    surface = Surface(seed, crossing)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    truth = {row.name: row.forest for row in importances(_random_trials(surface, 1000), trees=20).rows}
    first = set(sorted(truth, key=lambda name: -truth[name])[:3])
    trials = search(METHODS["TPE + Hyperband"], crossing, seed, budget=budget).trials
    ratings = {}
    for stopped in get_args(StoppedRuns):
        found = importances(trials, stopped=stopped, trees=50)
        shares = {row.name: row.forest for row in found.rows}
        names = sorted(shares)
        match = np.corrcoef([shares[name] for name in names], [truth[name] for name in names])[0, 1]
        ratings[stopped] = (float(match), float(len(first & {row.name for row in found.rows[:3]})), found.fit)
    return ratings


def _random_trials(surface: Surface, number: int) -> list[FrozenTrial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    for _ in range(number):
        trial = study.ask()
        ask = Ask(trial)
        vivit.suggest(ask)
        study.tell(trial, surface.final(ask.values))
    return study.get_trials(deepcopy=False)


def importance_table(ratings: Mapping[Crossing, Sequence[Rating]], *, budget: int) -> Table:
    """Return how close importances come to the true ones, by the way stopped runs are counted.

    Args:
        ratings: of every surface.
        budget: full runs that each search took.
    """
    surfaces = len(next(iter(ratings.values())))
    table = Table(title=f"importances after {budget} full runs, {surfaces} surfaces", title_justify="left")
    for column in ("crossing", "stopped runs", "correlation with truth", "of the first 3", "out-of-bag R2"):
        table.add_column(column, justify="left" if len(table.columns) < 2 else "right")
    for crossing, found in ratings.items():
        for stopped in get_args(StoppedRuns):
            means = np.mean([each[stopped] for each in found], axis=0)
            errors = np.std([each[stopped] for each in found], axis=0, ddof=1) / math.sqrt(len(found))
            cells = [f"{mean:.2f} +- {error:.2f}" for mean, error in zip(means, errors, strict=True)]
            table.add_row(crossing, stopped, *cells)
    return table
