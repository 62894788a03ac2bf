"""Which hyperparameters mattered in a study, as the paper's Table 4 says it, and how far to believe it."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import optuna
from jaxtyping import Float
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.forests import SHUFFLES, Forest, above_chance
from hpo.study import is_infeasible

StoppedRuns = Literal["grown", "last", "drop"]
"""What becomes of runs that the pruner stopped.

``grown``: they count with their last score times the growth of finished runs from that epoch to the end.
``last``: with their last score as it is. ``drop``: not at all.
"""

FEWEST_RUNS = 5
_FORESTS = 10
_SURE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """What a study says about one hyperparameter.

    Attributes:
        name: dotted name.
        forest: its share in what a random forest's splits explain, mean over forests; shares add up to 1.
        spread: standard deviation over forests that differ in their seed. It says nothing of other runs.
        above_chance: in what part of 20 further forests it explains more than a copy of it whose values are
            shuffled among the runs. About 0.5 for one that does not matter.
        correlation: Pearson's, with the score; None for choices without an order.
        optuna: share by Optuna's own evaluator (PED-ANOVA: what the best tenth of runs have in common).
    """

    name: str
    forest: float
    spread: float
    above_chance: float
    correlation: float | None
    optuna: float | None

    @property
    def stands_out(self) -> bool:
        """Whether one in 20 hyperparameters that do not matter would look as important."""
        return self.above_chance >= _SURE


@dataclass(frozen=True, slots=True, kw_only=True)
class Importances:
    """What a study says about all of its hyperparameters, the most important first.

    Attributes:
        rows: one per hyperparameter; none with too few runs.
        fit: coefficient of determination of the forests on runs that a tree has not seen (out of bag), mean.
        fit_spread: its standard deviation over forests.
        finished: finished runs that were used.
        stopped: stopped runs that were used.
        warnings: why the order should not be believed, in words; empty if nothing speaks against it.
    """

    rows: tuple[Importance, ...]
    fit: float
    fit_spread: float
    finished: int
    stopped: int
    warnings: tuple[str, ...]


def importances(
    trials: Sequence[FrozenTrial], *, stopped: StoppedRuns = "grown", seed: int = 0, trees: int = 100
) -> Importances:
    """Rank the hyperparameters of a study.

    A choice is one column per value, whose shares are added; a hyperparameter that not every run has (a
    condition does not hold) has one more column for that. Strides enter as they were used; their range
    depends on the patch, so a part of a patch's share may appear as its stride's.

    Failed and infeasible runs, and scores that are not finite, say nothing and are left out. Stopped runs
    are, by default, brought to the level of the end first. With their last scores as they are, the forests
    learn who was stopped when; without them, only good runs are left, which are too much alike to learn
    from. ``benchmarks/search.py --what importances`` compares the three.

    Args:
        trials: of the study.
        stopped: what to do with runs that the pruner has stopped.
        seed: of the forests.
        trees: of each forest.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, Table 4 (forest and linear correlation).
    """
    if stopped not in get_args(StoppedRuns):
        raise ValueError(f"stopped is {stopped!r}, but must be one of {', '.join(get_args(StoppedRuns))}")
    runs = _scored(trials, stopped=stopped)
    num_finished = sum(trial.state is TrialState.COMPLETE for trial, _ in runs)
    counts = {"finished": num_finished, "stopped": len(runs) - num_finished}
    scores = np.array([score for _, score in runs])
    names = sorted({name for trial, _ in runs for name in trial.params})
    if len(runs) < FEWEST_RUNS or not names or np.ptp(scores) == 0:
        why = f"{len(runs)} runs have a score, but a ranking needs {FEWEST_RUNS}, and scores that differ"
        return Importances(rows=(), fit=math.nan, fit_spread=math.nan, warnings=(why,), **counts)
    columns = [_columns(name, [trial for trial, _ in runs]) for name in names]
    seeds = range(_FORESTS * seed, _FORESTS * (seed + 1))
    forests = [Forest(columns, scores, seed=each, trees=trees) for each in seeds]
    shares, fits = np.array([each.shares for each in forests]), np.array([each.fit for each in forests])
    above_by_name = above_chance(columns, scores, seed=seed, trees=trees)
    by_optuna = _optuna_shares(runs)
    rows = [
        Importance(
            name=name,
            forest=float(shares[:, index].mean()),
            spread=float(shares[:, index].std(ddof=1)),
            above_chance=float(above_by_name[index]),
            correlation=_correlation(name, runs),
            optuna=by_optuna.get(name),
        )
        for index, name in enumerate(names)
    ]
    rows.sort(key=lambda row: -row.forest)
    fit = float(fits.mean())
    return Importances(
        rows=tuple(rows),
        fit=fit,
        fit_spread=float(fits.std(ddof=1)),
        warnings=_doubts(rows, fit=fit, num_runs=len(runs)),
        **counts,
    )


def _scored(trials: Sequence[FrozenTrial], *, stopped: StoppedRuns) -> list[tuple[FrozenTrial, float]]:
    finished = [
        trial for trial in trials if trial.state is TrialState.COMPLETE and math.isfinite(trial.values[0])
    ]
    runs = []
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            score = trial.values[0]
        elif trial.state is TrialState.PRUNED and stopped != "drop" and not is_infeasible(trial):
            curve = trial.intermediate_values
            epoch = max(curve, default=0)
            score = curve.get(epoch, math.nan)
            if stopped == "grown":
                score *= _growth(finished, epoch)
        else:
            continue
        if math.isfinite(score):
            runs.append((trial, score))
    return runs


def _growth(finished: Sequence[FrozenTrial], epoch: int) -> float:
    """Return the mean final score over the mean score after an epoch, of the finished runs."""
    pairs = [(trial.intermediate_values.get(epoch, math.nan), trial.values[0]) for trial in finished]
    known = np.array([pair for pair in pairs if math.isfinite(pair[0])])
    if not len(known):
        return 1.0
    early, final = known.mean(axis=0)
    # A score that starts at zero or below does not grow by a factor.
    return float(final / early) if early > 0 and final > early else 1.0


def _columns(name: str, trials: Sequence[FrozenTrial]) -> Float[np.ndarray, "runs columns"]:
    """Return what a forest sees of one hyperparameter."""
    values = [trial.params.get(name) for trial in trials]
    if _is_ordered(name, trials):
        numbers = np.array([math.nan if value is None else float(value) for value in values])
        missing = np.isnan(numbers)
        numbers[missing] = np.median(numbers[~missing])
        return np.stack([numbers, missing] if missing.any() else [numbers], axis=1)
    known = sorted(set(values), key=str)
    return np.array([[float(value == choice) for choice in known] for value in values])


def _is_ordered(name: str, trials: Sequence[FrozenTrial]) -> bool:
    for trial in trials:
        found = trial.distributions.get(name)
        if isinstance(found, CategoricalDistribution):
            return all(isinstance(value, int | float) for value in found.choices)
    return True


def _correlation(name: str, runs: Sequence[tuple[FrozenTrial, float]]) -> float | None:
    having = [(trial, score) for trial, score in runs if name in trial.params]
    if len(having) < 3 or not _is_ordered(name, [trial for trial, _ in having]):
        return None
    values = np.array([float(trial.params[name]) for trial, _ in having])
    scores = np.array([score for _, score in having])
    if np.ptp(values) == 0 or np.ptp(scores) == 0:
        return None
    return float(np.corrcoef(values, scores)[0, 1])


def _optuna_shares(runs: Sequence[tuple[FrozenTrial, float]]) -> dict[str, float]:
    # A study of its own, because Optuna looks at complete runs only, and one range per hyperparameter,
    # because it would take strides of patches of different size for different hyperparameters.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = _widest([trial for trial, _ in runs])
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=trial.params, distributions={name: ranges[name] for name in trial.params}, value=score
            )
            for trial, score in runs
        ]
    )
    with warnings.catch_warnings():
        # Few runs per condition; what that means for the ranking is said in our own words.
        warnings.simplefilter("ignore", UserWarning)
        shares = optuna.importance.get_param_importances(study)
    return {name: float(share) for name, share in shares.items()}


def _widest(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    ranges: dict[str, Any] = {}
    for trial in trials:
        for name, found in trial.distributions.items():
            known: Any = ranges.get(name)
            if known is None or known.single() or getattr(found, "high", 0) > getattr(known, "high", 0):
                ranges[name] = found
    return ranges


def _doubts(rows: Sequence[Importance], *, fit: float, num_runs: int) -> tuple[str, ...]:
    found = []
    if num_runs < 2 * len(rows):
        found.append(
            f"{num_runs} runs for {len(rows)} hyperparameters cannot support a ranking of them all: believe "
            f"no order among those that are above chance in fewer than {round(_SURE * SHUFFLES)} of "
            f"{SHUFFLES} forests"
        )
    if fit <= 0:
        found.append("the forests predict unseen runs no better than their mean: the ranking is noise")
    elif not any(row.stands_out for row in rows):
        found.append("no hyperparameter stands out from chance: the ranking is noise")
    return tuple(found)
