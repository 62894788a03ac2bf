"""When runs that do badly are stopped: Optuna's pruners, and what Hyperband's brackets mean in epochs."""

import binascii
import copy
from collections import Counter
from dataclasses import dataclass

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial

PRUNERS = ("hyperband", "median", "asha", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningConfig:
    """When runs that do badly are stopped.

    Attributes:
        pruner: Hyperband (brackets of successive halving), median of the others, ASHA (one bracket), or none.
        min_epochs: no run is stopped before it has trained so many.
        max_epochs: epochs of a run that is never stopped.
        reduction: one of so many runs survives a rung.
    """

    pruner: str = "hyperband"
    min_epochs: int = 1
    max_epochs: int = 9
    reduction: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be pruned by."""
        if self.pruner not in PRUNERS:
            raise ValueError(f"pruner is {self.pruner!r}, but must be one of {', '.join(PRUNERS)}")
        if not 1 <= self.min_epochs <= self.max_epochs:
            raise ValueError(
                f"min_epochs is {self.min_epochs}, but must be from 1 to max_epochs, {self.max_epochs}"
            )
        if self.reduction < 2:
            raise ValueError(f"reduction is {self.reduction}, but must be at least 2")

    def build(self) -> BasePruner:
        """Return Optuna's pruner."""
        if self.pruner == "hyperband":
            # Optuna uses the maximum to count brackets only, by a logarithm that falls short at exact powers
            # (243 of 3); a maximum between two powers gives the same brackets safely.
            largest = self.min_epochs * self.reduction ** (len(self.rungs) - 1)
            return HyperbandPruner(
                min_resource=self.min_epochs,
                max_resource=largest + largest // 2,
                reduction_factor=self.reduction,
            )
        if self.pruner == "asha":
            return SuccessiveHalvingPruner(min_resource=self.min_epochs, reduction_factor=self.reduction)
        if self.pruner == "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=self.min_epochs - 1)
        return NopPruner()

    @property
    def rungs(self) -> list[list[int]]:
        """Epochs at which each bracket compares its runs, the bracket that stops earliest first.

        Source:
            Li et al. 2018, Hyperband, algorithm 1: bracket s of s_max + 1 starts at R / eta^s epochs.
        """
        if self.pruner == "none":
            return [[]]
        if self.pruner == "median":
            return [list(range(self.min_epochs, self.max_epochs))]
        first, brackets = self.min_epochs, []
        while first <= self.max_epochs:
            rungs, rung = [], first
            while rung < self.max_epochs:
                rungs.append(rung)
                rung *= self.reduction
            brackets.append(rungs)
            first *= self.reduction
        return brackets if self.pruner == "hyperband" else brackets[:1]


def bracket_of(study_name: str, number: int, config: PruningConfig) -> int | None:
    """Return a run's Hyperband bracket; None when there is only one.

    The same rule as Optuna's pruner has: a hash of study name and number picks a bracket with a probability
    proportional to its budget.
    """
    if config.pruner != "hyperband":
        return None
    budgets = bracket_budgets(len(config.rungs), reduction=config.reduction)
    place = binascii.crc32(f"{study_name}_{number}".encode()) % sum(budgets)
    for bracket, budget in enumerate(budgets):
        place -= budget
        if place < 0:
            return bracket
    raise AssertionError("a place lies within the sum of the budgets")


def undecided(optuna_trial: FrozenTrial, study_name: str, config: PruningConfig) -> FrozenTrial:
    """Return a run as if nothing had been decided about its last epoch.

    Optuna's successive halving notes a rung as passed before it compares the runs there, and does not compare
    again at a rung that is noted.
    """
    rungs = config.rungs[bracket_of(study_name, optuna_trial.number, config) or 0]
    ahead = {f"completed_rung_{index}" for index, rung in enumerate(rungs) if rung == optuna_trial.last_step}
    same = copy.copy(optuna_trial)
    same.system_attrs = {
        name: value for name, value in optuna_trial.system_attrs.items() if name not in ahead
    }
    return same


def bracket_budgets(num_brackets: int, *, reduction: int) -> list[int]:
    """Return in which proportion runs go to the brackets: ceil((s_max + 1) eta^s / (s + 1))."""
    levels = reversed(range(num_brackets))
    return [-(-num_brackets * reduction**level // (level + 1)) for level in levels]


def bracket_counts(study_name: str, num_runs: int, config: PruningConfig) -> Counter[int | None]:
    """Return how many of the first runs of a study each bracket gets."""
    return Counter(bracket_of(study_name, number, config) for number in range(num_runs))
