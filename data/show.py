"""Draw what a store holds as one page: ``python data/show.py STORE``."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  python data/show.py store/                         # writes store-overview.html beside the store
  python data/show.py store/ --to overview.html

exit codes: 0 done, 1 the reason is printed, 2 wrong use, 130 interrupted (the same command starts anew)
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported before this is done."""
    from data.command_line import CommandParser

    parser = CommandParser(
        description="Draw what a store holds as one page: trials, videos, activity, behavior, neurons.",
        epilog=EXAMPLES,
    )
    parser.add_argument("store", type=Path, help="made by data/convert.py")
    parser.add_argument("--to", type=Path, metavar="FILE", help="page to write; default: beside the store")
    parsed = parser.parse(arguments)
    if parsed.to is None:
        store = parsed.store.resolve()
        parsed.to = store.parent / f"{store.name}-overview.html"
    return parsed


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parsed = parse_arguments(arguments)
    from data.overview_command import show_command

    return show_command(parsed)


if __name__ == "__main__":
    from data.command_line import run

    run(main)
