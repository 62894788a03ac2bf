"""Simulate recordings in the raw Sensorium-2023 format: ``python data/simulate.py --to DIR``."""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data.experiment import SimulationConfig
from data.movies import MovieLibrary
from data.simulation import count_trials, simulate


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder for the mouse folders and truth/")
    parser.add_argument("--scale", choices=("demo", "full"), default="demo")
    parser.add_argument("--mice", type=int, help="number of mice; each two share their movies")
    parser.add_argument("--neurons", type=int, help="neurons per mouse")
    parser.add_argument("--train-clips", type=int, help="training videos, each shown once")
    parser.add_argument(
        "--signal-power", type=float, help="share of single-trial variance that repeats (0..1)"
    )
    parser.add_argument(
        "--movies", type=Path, help="folder of video files to use instead of natural-like noise"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Simulate with a progress bar and say what was written."""
    arguments = parse_arguments()
    console = Console()
    try:
        config = SimulationConfig.for_scale(
            arguments.scale,
            mice=arguments.mice,
            neurons=arguments.neurons,
            train_clips=arguments.train_clips,
            signal_power=arguments.signal_power,
            seed=arguments.seed,
        )
        movies = None
        if arguments.movies is not None:
            movies = MovieLibrary(
                arguments.movies, clip_frames=config.clip_frames, frame_shape=config.frame_shape
            )
            console.print(f"movies: {movies}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("simulating", total=count_trials(config))
            folders = simulate(
                arguments.to,
                config,
                movies=movies,
                on_progress=lambda session, *_: progress.update(
                    task, advance=1, description=session.split("-Video")[0]
                ),
            )
    except (ValueError, FileExistsError, ModuleNotFoundError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    for folder in folders:
        console.print(str(folder), highlight=False, soft_wrap=True)
    console.print(f"truth: {arguments.to / 'truth'}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
