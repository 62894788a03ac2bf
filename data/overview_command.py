"""What ``data/show.py`` does once its command line is read."""

import argparse

from rich.console import Console
from rich.progress import Progress

from data.command_line import DONE, FAILED, INTERRUPTED
from data.overview import write_overview
from data.recording import open_store


def show_command(parsed: argparse.Namespace) -> int:
    """Draw as the parsed arguments say; return the exit code."""
    console = Console()
    try:
        recordings = open_store(parsed.store)
        with Progress(console=console) as progress:
            task = progress.add_task("drawing", total=len(recordings))
            write_overview(
                recordings,
                parsed.to,
                on_session=lambda session: progress.update(task, advance=1, description=session),
            )
    except KeyboardInterrupt:
        console.print("interrupted; nothing was written")
        return INTERRUPTED
    except (ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILED
    console.print(f"written: {parsed.to}", markup=False, highlight=False, soft_wrap=True)
    return DONE
