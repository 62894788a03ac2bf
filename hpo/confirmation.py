"""The best runs again with further seeds, so that the winner is not merely the luckiest.

A confirmation is a study of its own in the folder of the one that it confirms, with the runs and seeds
already chosen: it is driven, interrupted, gone on with and mirrored like any other.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.pruning import PruningConfig
from hpo.space import Bounds, Suggestions
from hpo.study import Study, made_with, ranked
from training.spec import RunSpec, from_plain

RUN, SEED = "confirmed_run", "seed"
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmationSpace:
    """Runs of a study, with other seeds. Takes the place of a ``SearchSpace``.

    Attributes:
        name: the model family.
        base: a run of the study.
        specs: the runs by number.
    """

    name: str
    base: RunSpec
    specs: Mapping[int, RunSpec]

    def spec(self, optuna_trial: Suggestions, bounds: Bounds | None = None) -> RunSpec:  # noqa: ARG002
        """Return the run that a trial describes."""
        run = optuna_trial.suggest_int(RUN, 0, _LARGEST)
        seed = optuna_trial.suggest_int(SEED, 0, _LARGEST)
        return replace(self.specs[run], seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """One run and what further seeds say about it.

    Attributes:
        run: its number.
        found: its score in the search, which chose it and is too high for that reason.
        scores: of the further seeds, in the order of the seeds.
        failures: seeds without a score.
    """

    run: int
    found: float
    scores: tuple[float, ...]
    failures: int

    @property
    def mean(self) -> float | None:
        """Mean over the further seeds, None without scores."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the further seeds, None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


CONFIRMATION_HEADINGS = ("run", "mean", "sd", "lowest", "highest", "seeds", "found")
FOUND = "'found' is the score that chose the run, too high for that reason"


def confirmation_cells(row: Confirmed) -> list[str]:
    """Return one run's line as text, in the order of ``CONFIRMATION_HEADINGS``."""
    shown = [row.mean, row.spread, min(row.scores, default=None), max(row.scores, default=None)]
    failed = f" ({row.failures} failed)" if row.failures else ""
    return [
        str(row.run),
        *("-" if value is None else f"{value:.4f}" for value in shown),
        f"{len(row.scores)}{failed}",
        f"{row.found:.4f}",
    ]


def confirmation_folder(folder: Path) -> Path:
    """Return where a study's confirmation is kept."""
    return folder / f"{folder.resolve().name}-confirmed"


def open_confirmation(study: Study, *, top: int, seeds: int) -> tuple[Study, int]:
    """Return the confirmation of a study's best runs, and how many runs it has in all.

    Raising either number later extends it. It confirms the runs that are the best now: those of an earlier
    call stay, too.

    Args:
        study: what was searched.
        top: so many of the best runs.
        seeds: further seeds of each, after the study's own.

    Raises:
        StudyError: another process is at it.
    """
    best = ranked(study.trials())[:top]
    specs = {trial.number: _spec(trial) for trial in ranked(study.trials())}
    base = study.space.base
    confirmation = Study(
        confirmation_folder(study.folder),
        ConfirmationSpace(name=study.space.name, base=base, specs=specs),
        bounds=Bounds(),
        pruning=PruningConfig(pruner="none", max_epochs=base.epochs),
        seed=base.seed,
        identity={"confirms": study.uid},
        made_with=study.made_with,
    )
    for trial in best:
        for index in range(seeds):
            confirmation.enqueue({RUN: trial.number, SEED: base.seed + 1 + index})
    return confirmation, len(confirmation.trials())


def confirmed(trials: Sequence[FrozenTrial], confirmation: Sequence[FrozenTrial]) -> list[Confirmed]:
    """Return what further seeds say, the best mean first.

    Args:
        trials: of the study.
        confirmation: of its confirmation.
    """
    by_run: dict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in confirmation:
        if trial.state.is_finished():
            by_run[trial.params[RUN]].append(trial)
    rows = []
    for run, again in by_run.items():
        scored = sorted(
            (trial for trial in again if trial.state is TrialState.COMPLETE), key=lambda t: t.params[SEED]
        )
        rows.append(
            Confirmed(
                run=run,
                found=trials[run].values[0],
                scores=tuple(trial.values[0] for trial in scored),
                failures=len(again) - len(scored),
            )
        )
    return sorted(rows, key=lambda row: -(row.mean if row.mean is not None else float("-inf")))


def _spec(trial: FrozenTrial) -> RunSpec:
    described: Any = made_with(trial)["spec"]
    return from_plain(described)
