"""Random forests of the scores of runs, and whether a hyperparameter does more in them than chance."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import RandomForestRegressor

SHUFFLES = 20
"""Forests in which each hyperparameter is compared with a shuffled copy of itself."""


class Forest:
    """A random forest of the scores.

    Attributes:
        shares: of each hyperparameter.
    """

    def __init__(
        self,
        columns: Sequence[Float[np.ndarray, "runs _"]],
        scores: Float[np.ndarray, " runs"],
        *,
        seed: int,
        trees: int,
    ) -> None:
        self._table, self._scores = np.concatenate(columns, axis=1), scores
        self._forest = RandomForestRegressor(n_estimators=trees, bootstrap=True, random_state=seed)
        self._forest.fit(self._table, scores)
        owners = np.repeat(np.arange(len(columns)), [part.shape[1] for part in columns])
        self.shares = np.bincount(owners, weights=self._forest.feature_importances_, minlength=len(columns))

    @property
    def fit(self) -> float:
        """R2 of predictions by the trees that have not seen a run.

        Runs that every tree has seen are left out; scikit-learn's own ``oob_score_`` counts them as predicted
        to be 0.
        """
        predicted = np.stack([tree.predict(self._table) for tree in self._forest.estimators_])
        unseen = np.ones(predicted.shape, dtype=bool)
        for row, drawn in zip(unseen, self._forest.estimators_samples_, strict=True):
            row[drawn] = False
        rated = unseen.any(axis=0)
        means = (predicted * unseen).sum(axis=0)[rated] / unseen.sum(axis=0)[rated]
        wanted = self._scores[rated]
        return float(1 - np.sum((wanted - means) ** 2) / np.sum((wanted - wanted.mean()) ** 2))


def above_chance(
    columns: Sequence[Float[np.ndarray, "runs _"]],
    scores: Float[np.ndarray, " runs"],
    *,
    seed: int,
    trees: int,
) -> Float[np.ndarray, " names"]:
    """Return how often each hyperparameter explains more than its shuffled copy in the same forest.

    Args:
        columns: of each hyperparameter.
        scores: of the runs.
        seed: of the forests.
        trees: of each.

    Returns:
        Share of ``SHUFFLES`` forests.

    Source:
        Kursa and Rudnicki 2010, "Feature selection with the Boruta package" (shuffled copies), here each
        compared with its own.
    """
    rng = np.random.default_rng([seed, 1])
    wins = []
    for shuffle in range(SHUFFLES):
        order = rng.permutation(len(scores))
        copies = [part[order] for part in columns]
        shares = Forest([*columns, *copies], scores, seed=SHUFFLES * seed + shuffle, trees=trees).shares
        wins.append(shares[: len(columns)] > shares[len(columns) :])
    share: Float[np.ndarray, " names"] = np.mean(wins, axis=0)
    return share
