"""What ``data/simulate.py`` does once its command line is read."""

import argparse

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.command_line import FAILED, INTERRUPTED
from data.experiment import SimulationConfig
from data.films import bundled_films, find_films
from data.movies import MovieClips
from data.simulation import count_trials, simulate


def simulate_command(parsed: argparse.Namespace) -> int:
    """Simulate with a progress bar, say what was written; return the exit code."""
    console = Console()
    try:
        config = SimulationConfig.for_scale(
            parsed.scale,
            mice=parsed.mice,
            neurons=parsed.neurons,
            train_clips=parsed.train_clips,
            signal_power=parsed.signal_power,
            seed=parsed.seed,
        )
        movies = None
        if parsed.movies is not None:
            files = bundled_films() if parsed.movies is True else find_films(parsed.movies)
            movies = MovieClips.for_simulation(files, config)
            console.print(f"movies: {movies}", highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("simulating", total=count_trials(config))
            folders = simulate(
                parsed.to,
                config,
                movies=movies,
                on_progress=lambda session, *_: progress.update(
                    task, advance=1, description=session.split("-Video")[0]
                ),
            )
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on after the last finished mouse")
        return INTERRUPTED
    except (ValueError, FileExistsError, ModuleNotFoundError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILED
    for folder in folders:
        console.print(str(folder), highlight=False, soft_wrap=True)
    console.print(f"truth: {parsed.to / 'truth'}", highlight=False, soft_wrap=True)
    return 0
