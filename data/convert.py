"""Convert raw recordings to a store, or check one: ``python data/convert.py RAW... --to STORE``."""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  python data/convert.py recordings/* --to store/
  python data/convert.py dynamic29515.zip --to store/    # an existing store is extended
  python data/convert.py --check store/

exit codes: 0 done, 1 the reason is printed, 2 wrong use, 130 interrupted (the same command goes on)
"""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; nothing heavy is imported before this is done."""
    from data.command_line import CommandParser

    parser = CommandParser(
        description="Convert raw recordings to a store, or check a store.",
        epilog=EXAMPLES,
    )
    parser.add_argument("raw", nargs="*", type=Path, help="mouse folders, zips, or folders of them")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, metavar="STORE", help="store to write; an existing one is extended")
    what.add_argument("--check", type=Path, metavar="STORE", help="verify sizes and hashes of all files")
    how = parser.add_argument_group("how values are stored")
    how.add_argument(
        "--responses",
        choices=("auto", "float16", "float32"),
        default="auto",
        help="element type of the responses; auto is float16 where its range suffices (default)",
    )
    how.add_argument("--video", choices=("uint8", "float16"), default="uint8", help="default: uint8")
    parsed = parser.parse(arguments)
    if (parsed.to is None) == bool(parsed.raw):
        parser.error("give RAW... with --to STORE, or --check STORE alone")
    return parsed


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parsed = parse_arguments(arguments)
    from data.conversion_command import convert_command

    return convert_command(parsed)


if __name__ == "__main__":
    from data.command_line import run

    run(main)
