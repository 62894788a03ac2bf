"""Command lines about studies that exist."""

import argparse
import os
from pathlib import Path

from data.command_line import CommandParser

EXAMPLES = {
    "report": """examples:
  python hpo/search.py report vivit-demo
  python hpo/search.py report vivit-demo --out page.html --root /shared/runs

exit codes: 0 written, 2 there is no such study
""",
    "reproduce": """examples:
  python hpo/search.py reproduce vivit-demo 7
  python hpo/search.py reproduce vivit-demo 7 --recordings store/

exit codes: 0 reproduced, 1 not reproduced (what differs is printed), 2 wrong use, 130 interrupted
""",
}


def parse_afterwards(arguments: list[str]) -> argparse.Namespace:
    """Read a command line about a study that exists."""
    action = arguments[0]
    about = {
        "report": "Write a study's report (HTML and CSV), also while it is searched.",
        "reproduce": "Make a run of a study again, exactly, and compare the scores.",
    }
    parser = CommandParser(prog=f"search.py {action}", description=about[action], epilog=EXAMPLES[action])
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
    return parser.parse(arguments[1:])
