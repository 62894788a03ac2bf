"""What a person watches while an ensemble is built: bars on a terminal, one line per event elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ensembles.members import Member, MemberResult
from training.results import EpochReport


class BuildDisplay:
    """Shows a build. Use as a context manager.

    Args:
        console: where to write; a log file gets plain lines without control characters.
        num_members: members of the build.
    """

    def __init__(self, console: Console, *, num_members: int) -> None:
        self._console, self._num_members = console, num_members
        self._started, self._done = time.monotonic(), 0
        self._epochs: dict[str, int] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._bars.add_task("members", total=num_members, numbers="")
        self._bar_of: dict[str, int] = {}

    def __enter__(self) -> "BuildDisplay":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def started(self, members: Sequence[Member]) -> None:
        """Learn how long members train."""
        self._epochs |= {member.name: member.spec.epochs for member in members}

    def epoch(self, name: str, report: EpochReport) -> None:
        """Show a finished epoch of a member."""
        if name not in self._bar_of:
            self._bar_of[name] = self._bars.add_task(name, total=self._epochs.get(name), numbers="")
        numbers = f"correlation {report.score:.4f}  best {report.best_score:.4f}"
        self._bars.update(self._bar_of[name], completed=report.epoch, numbers=numbers)  # type: ignore[arg-type]

    def ended(self, result: MemberResult) -> None:
        """Show a member that ended; stays on the screen as a line."""
        self._done += 1
        self._bars.update(self._all, completed=self._done)
        if result.name in self._bar_of:
            self._bars.remove_task(self._bar_of.pop(result.name))  # type: ignore[arg-type]
        how = "" if result.score is None else f"  hold-out {result.score:.4f}"
        if result.error is not None:
            how += f"  {result.error}"
        self._say(
            f"member {self._done:>2}/{self._num_members}  {result.name:<24} {result.outcome:<9} "
            f"{result.epochs:>3} epochs {result.train_seconds:>7.1f} s{how}"
        )

    def phase(self, what: str) -> None:
        """Show what is done now."""
        self._say(what)

    def _say(self, line: str) -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(f"{elapsed:>7.1f} s  {line}", highlight=False, markup=False, soft_wrap=True)
