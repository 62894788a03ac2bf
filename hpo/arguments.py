"""Command lines about studies that exist, and what a mistyped option should have been."""

import argparse
import difflib
import os
from pathlib import Path


def parse_afterwards(arguments: list[str]) -> argparse.Namespace:
    """Read a command line about a study that exists."""
    action = arguments[0]
    about = {
        "report": "Write a study's report (HTML and CSV), also while it is searched.",
        "reproduce": "Make a run of a study again, exactly, and compare the scores.",
    }
    parser = argparse.ArgumentParser(
        prog=f"search.py {action}", description=about[action], allow_abbrev=False
    )
    parser.set_defaults(action=action)
    parser.add_argument("study", help="name or folder of the study")
    if action == "reproduce":
        parser.add_argument("run", type=int, help="number of the run")
        parser.add_argument(
            "--recordings", nargs="+", type=Path, metavar="DIR", help="default: where they were"
        )
    else:
        parser.add_argument("--out", type=Path, help="page (default: report.html in the study's folder)")
    root = Path(os.environ.get("STRIATE_STORAGE", "runs"))
    parser.add_argument("--root", type=Path, default=root, help="folder of studies")
    return parse_strictly(parser, arguments[1:])


def parse_strictly(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Read a command line, and guess what an unknown option should have been."""
    parsed, unknown = parser.parse_known_args(arguments)
    for option in unknown:
        known = list(parser._option_string_actions)
        close = difflib.get_close_matches(option.partition("=")[0], known, n=1)
        guess = f"; did you mean {close[0]}?" if close else ""
        parser.error(f"{option} is not an option, see --help{guess}")
    return parsed
