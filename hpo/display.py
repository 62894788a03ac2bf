"""What a person watches while a search runs: one live table on a terminal, one line per event elsewhere."""

import time
from collections import Counter
from types import TracebackType

from optuna.trial import FrozenTrial
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpo.confirmation import RUN, SEED
from hpo.driver import Limits
from hpo.pruning import bracket_of
from hpo.study import Asked, Study, outcome_of, ranked
from training.results import EpochReport, Outcome, RunResult

_BARS = "".join(map(chr, range(0x2581, 0x2589)))
_BEST_SHOWN = 3
_SPARK_WIDTH = 12
_KEYS = {
    "optimizer.core_lr": "core lr",
    "optimizer.readout_lr": "readout lr",
    "loader.batch_size": "batch",
}
"""Hyperparameters that every family's space has, and their headings."""


class SearchDisplay:
    """Shows a search. Use as a context manager; it is an observer of the driver.

    Args:
        study: what is searched.
        console: where to write; a log file gets plain lines without control characters.
        limits: when the search ends.
    """

    def __init__(self, study: Study, console: Console, limits: Limits) -> None:
        self._study, self._console, self._limits = study, console, limits
        self._curves: dict[int, list[EpochReport]] = {}
        self._started = time.monotonic()
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "SearchDisplay":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def started(self, asked: Asked) -> None:
        """Show a run that begins."""
        self._curves[asked.number] = []
        again = f"  (run {asked.values[RUN]} with seed {asked.values[SEED]})" if RUN in asked.values else ""
        if asked.resumed:
            self._say(f"run {asked.number:>3}  goes on{again}")
        elif not self._console.is_terminal:
            self._say(f"run {asked.number:>3}  started{again}")

    def epoch(self, number: int, report: EpochReport) -> None:
        """Show a finished epoch."""
        curve = self._curves.setdefault(number, [])
        if not curve or report.epoch > curve[-1].epoch:
            curve.append(report)
        self.refresh()

    def ended(self, number: int, result: RunResult) -> None:
        """Show a run that ended; stays on the screen as a line."""
        curve = self._curves.pop(number, [])
        best = self._study.best()
        score = "" if result.score is None else f"  {result.score:.4f}"
        is_best = result.score is not None and (best is None or result.score > best.values[0])
        if result.outcome is Outcome.FINISHED and is_best:
            score += "  best so far"
        reason = f"  {result.error}" if result.error else ""
        epochs = max(result.epochs, len(curve))
        end = f"{result.outcome:<10} {epochs:>3} epochs {result.seconds:>6.1f} s{score}{reason}"
        self._say(f"run {number:>3}  {end}")
        self.refresh()

    def refresh(self) -> None:
        """Draw the table again, at most twice a second."""
        now = time.monotonic()
        if self._console.is_terminal and now - self._drawn > 0.5:
            self._drawn = now
            self._live.update(Group(self._header(), self._table()), refresh=True)

    def _say(self, line: str) -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(f"{elapsed:>7.1f} s  {line}", highlight=False, markup=False, soft_wrap=True)

    def _header(self) -> Text:
        trials = self._study.trials()
        counts = Counter(outcome_of(trial) for trial in trials)
        counted = ", ".join(f"{counts[str(outcome)]} {outcome}" for outcome in Outcome)
        epochs = sum(len(trial.intermediate_values) for trial in trials)
        done = sum(counts[str(outcome)] for outcome in Outcome if outcome is not Outcome.INFEASIBLE)
        full = (done + len(self._curves)) * self._study.space.base.epochs
        return Text(
            f"{done} of {self._limits.runs} runs: {counted}; {epochs} epochs instead of {full}; "
            f"{self._left(done)}",
            style="bold",
        )

    def _left(self, done: int) -> str:
        elapsed = time.monotonic() - self._started
        return f"{elapsed / 60:.1f} min" + (
            f", about {elapsed / done * (self._limits.runs - done) / 60:.1f} min left" if done > 1 else ""
        )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("run", "epoch", "", "score", "curve", "bracket", "clips/s", "left", *_KEYS.values()):
            table.add_column(column, justify="left" if column in ("", "curve") else "right")
        trials = self._study.trials()
        for number, curve in sorted(self._curves.items()):
            table.add_row(*self._running_row(trials[number], curve))
        for trial in ranked(trials)[:_BEST_SHOWN]:
            scores = list(trial.intermediate_values.values())
            cells = [str(trial.number), str(len(scores)), "done", f"{trial.values[0]:.4f}", sparkline(scores)]
            table.add_row(*cells, self._bracket(trial.number), "", "", *_key_values(trial))
        return table

    def _running_row(self, trial: FrozenTrial, curve: list[EpochReport]) -> list[str]:
        epochs = self._study.space.base.epochs
        done = curve[-1].epoch if curve else 0
        filled = round(10 * done / epochs)
        bar = "\u2501" * filled + "\u254c" * (10 - filled)
        cells = [str(trial.number), f"{done}/{epochs}", bar]
        if not curve:
            return [*cells, "", "", self._bracket(trial.number), "", "", *_key_values(trial)]
        seconds = sum(report.seconds for report in curve) / len(curve) * (epochs - done)
        return [
            *cells,
            f"{curve[-1].score:.4f}",
            sparkline([report.score for report in curve]),
            self._bracket(trial.number),
            f"{curve[-1].clips_per_second:.1f}",
            f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min",
            *_key_values(trial),
        ]

    def _bracket(self, number: int) -> str:
        bracket = bracket_of(self._study.name, number, self._study.pruning)
        return "" if bracket is None else str(bracket)


def _key_values(trial: FrozenTrial) -> list[str]:
    values = [trial.params.get(name) for name in _KEYS]
    return ["" if value is None else f"{value:.2g}" for value in values]


def sparkline(values: list[float]) -> str:
    """Return the last values as bars of eight heights."""
    shown = [value for value in values if value == value][-_SPARK_WIDTH:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(_BARS[round(7 * (value - low) / span) if span else 3] for value in shown)
