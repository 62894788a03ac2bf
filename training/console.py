"""What a person watches while one run trains: a live line on a terminal, one line per epoch elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.forecast import Forecast
from training.results import EpochReport, RunResult, StepReport
from training.spec import RunSpec


class RunDisplay:
    """Shows a run. Use as a context manager; ``step`` and ``epoch`` are called while it trains.

    Args:
        console: where to write; a log file gets plain lines without control characters.
        epochs: how many there will be at most.
    """

    def __init__(self, console: Console, *, epochs: int) -> None:
        self._console = console
        self._epochs = epochs
        self._seconds: list[float] = []
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._epoch_bar = self._progress.add_task("epoch", total=epochs, numbers="")
        self._step_bar = self._progress.add_task("step", total=None, numbers="")

    def __enter__(self) -> "RunDisplay":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, report: StepReport) -> None:
        """Show a finished optimizer step."""
        numbers = f"loss {report.loss:.4f}  {report.clips_per_second:.1f} clips/s"
        self._progress.update(self._step_bar, completed=report.step, total=report.num_steps, numbers=numbers)

    def epoch(self, report: EpochReport) -> None:
        """Show a finished epoch; stays on the screen as a line."""
        self._progress.update(
            self._epoch_bar,
            completed=report.epoch,
            numbers=f"correlation {report.score:.4f}  best {report.best_score:.4f}",
        )
        # Only the epochs seen here: those before a resume, and the start of workers, took their own time.
        self._seconds.append(report.seconds)
        left = sum(self._seconds) / len(self._seconds) * (self._epochs - report.epoch)
        self._console.print(
            f"epoch {report.epoch:>3}/{self._epochs}  loss {report.loss:.4f}  correlation {report.score:.4f}"
            f"  best {report.best_score:.4f}  {report.clips_per_second:.1f} clips/s  "
            f"{report.seconds:.1f} s  at most {left / 60:.1f} min left",
            highlight=False,
        )


def result_table(result: RunResult) -> Table:
    """Return the table that ends a run."""
    table = _two_columns(f"Run {result.run_id}")
    table.add_row("outcome", str(result.outcome))
    if result.error is not None:
        table.add_row("reason", result.error)
    if result.score is not None:
        table.add_row("hold-out correlation", f"{result.score:.4f}")
        for session, score in result.score_by_session.items():
            table.add_row(f"  {session}", f"{score:.4f}")
    table.add_row("epochs", str(result.epochs))
    table.add_row("time", f"{result.seconds:.1f} s")
    if result.checkpoint is not None:
        table.add_row("checkpoint", str(result.checkpoint))
    return table


def forecast_table(spec: RunSpec, taken: Forecast) -> Table:
    """Return the table of ``--dry-run``."""
    table = _two_columns(f"A {spec.family} run would take")
    table.add_row("device", taken.device)
    table.add_row("parameters", f"{taken.parameters:,}")
    table.add_row("clips of a step", f"{taken.step_clips}, of a session {taken.micro_batch} at a time")
    table.add_row(
        "memory of a step", f"{taken.peak_bytes / 2**30:.2f} GiB of {taken.free_bytes / 2**30:.1f} GiB free"
    )
    table.add_row("forward passes of a step", f"{taken.flops / 1e9:,.1f} GFLOP; backward about twice that")
    table.add_row("steps", f"{taken.steps_per_epoch} an epoch, at most {spec.epochs} epochs")
    for session, num_trials in taken.training.items():
        table.add_row(
            f"  {session}", f"{num_trials} training trials, {taken.held_out[session]} held out to choose by"
        )
    return table


def _two_columns(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    # A path that is cut short is of no use.
    table.add_column(overflow="fold")
    return table
