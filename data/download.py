"""Download public recordings of Sensorium 2023: ``python data/download.py F G --to DIR``."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  python data/download.py F G --to recordings/
  python data/download.py all --to recordings/ --complete-old

exit codes: 0 all complete, 1 the reason is printed, 2 wrong use, 130 interrupted (the same command goes on)
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported before this is done."""
    from data.command_line import CommandParser

    parser = CommandParser(
        description="Download public recordings of Sensorium 2023, resuming what is incomplete.",
        epilog=EXAMPLES,
    )
    parser.add_argument("mice", nargs="+", help="letters A to J, session names, old, new or all")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for the zips")
    source = parser.add_argument_group("where from")
    source.add_argument("--base-url", help="mirror with the same folders as GIN (default: GIN)")
    source.add_argument(
        "--complete-old",
        action="store_true",
        help="take old mice from their later release, whose test tiers have responses too",
    )
    source.add_argument(
        "--attempts", type=int, default=8, help="attempts in a row that bring nothing (default: 8)"
    )
    return parser.parse(arguments)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parsed = parse_arguments(arguments)
    from data.download_command import download_command

    return download_command(parsed)


if __name__ == "__main__":
    from data.command_line import run

    run(main)
