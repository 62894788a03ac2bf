"""TPE whose draws are a function of the seed, the run's number, the hyperparameter and the results so far."""

import hashlib
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

SAMPLERS = ("tpe", "random")


class SeededSampler(BaseSampler):
    """Optuna's TPE (or random search), seeded anew for every draw.

    A sampler with one seed proposes its first points again after a restart. This one continues: a run that
    was half asked for when the driver died gets the same remaining values, in whatever order they are asked.

    Args:
        seed: of all draws.
        kind: ``tpe`` or ``random``.
        num_random: runs that are drawn at random before TPE begins.
    """

    def __init__(self, seed: int, *, kind: str = "tpe", num_random: int = 8) -> None:
        if kind not in SAMPLERS:
            raise ValueError(f"sampler is {kind!r}, but must be one of {', '.join(SAMPLERS)}")
        self._seed, self._kind, self._num_random = seed, kind, num_random
        self._space = self._make(0)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the hyperparameters that are drawn together."""
        return self._space.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw the hyperparameters that all runs have in common."""
        return self._make(trial.number).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one hyperparameter."""
        sampler = self._make(trial.number, param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Let TPE note whether the run was feasible."""
        self._space.after_trial(study, trial, state, values)

    def _make(self, number: int, name: str = "") -> BaseSampler:
        digest = hashlib.sha256(f"{self._seed}:{number}:{name}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self._kind == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=self._num_random)
