"""Which runs keep their checkpoints: disk use is bounded by the best few."""

import shutil
from pathlib import Path

from hpo.study import Asked, Study, ranked, run_folder
from training.results import EpochReport, RunResult


class CheckpointKeeper:
    """Removes checkpoints as soon as they cannot matter any more. It is an observer of the driver.

    Args:
        study: whose runs.
        keep: so many of the best finished runs keep theirs.
    """

    def __init__(self, study: Study, *, keep: int = 5) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}, but must be at least 1")
        self._study, self._keep = study, keep
        self._removed: set[int] = set()

    def started(self, _asked: Asked) -> None:
        """Tidy up what the run before has left; by now the study knows how that one ended."""
        self.tidy()

    def epoch(self, _number: int, _report: EpochReport) -> None:
        """Keep everything of a run that trains."""

    def ended(self, _number: int, _result: RunResult) -> None:
        """Remove nothing yet: if the driver dies before the study is told, the run goes on from them."""

    def tidy(self) -> None:
        """Remove the checkpoints of all finished runs but the best, and what only going on needs."""
        trials = self._study.trials()
        best = {trial.number for trial in ranked(trials)[: self._keep]}
        for trial in trials:
            if not trial.state.is_finished() or trial.number in self._removed:
                continue
            if trial.number not in best:
                self._remove(trial.number)
                self._removed.add(trial.number)
            else:
                for state in self._checkpoints(trial.number).glob("state-*"):
                    shutil.rmtree(state, ignore_errors=True)

    def _remove(self, number: int) -> None:
        shutil.rmtree(self._checkpoints(number), ignore_errors=True)

    def _checkpoints(self, number: int) -> Path:
        return run_folder(self._study.folder, number) / "checkpoints"
