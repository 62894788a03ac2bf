"""What all commands share: strict options with guesses, exit codes, and an answer to an early Ctrl-C.

Imports the standard library only, so that ``--help`` answers at once. It lives in the lowest package because
every other may import it.
"""

import argparse
import difflib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

DONE = 0
"""What was asked for is there."""
FAILED = 1
"""It is not, or not all of it; the reason is printed."""
MISUSED = 2
"""Nothing was started: the command line, or what it names, cannot be used."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM; the same command goes on (130 is a shell's 128 and the signal's 2)."""


class CommandParser(argparse.ArgumentParser):
    """Reads a command line; an unknown option or choice is refused with the nearest known one.

    Args:
        description: what the command does, in one line.
        epilog: examples and exit codes, shown as they are.
        prog: name in messages; the script's by default.
    """

    def __init__(self, *, description: str, epilog: str | None = None, prog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # An abbreviation of today is an ambiguity of tomorrow.
            allow_abbrev=False,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Read a command line.

        Raises:
            SystemExit: with code 2, after a message that names the nearest option or choice.
        """
        parsed, unknown = self.parse_known_args(arguments)
        for option in unknown:
            guess = _guess(option.partition("=")[0], list(self._option_string_actions))
            self.error(f"{option} is not an option, see --help{guess}")
        return parsed

    def error(self, message: str) -> NoReturn:
        """End with code 2; a choice that does not exist is answered with the nearest."""
        refused = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if refused is not None:
            message += _guess(refused[1], re.findall(r"'([^']*)'", refused[2]))
        super().error(message)


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a script's ``main`` and exit with its code; answer Ctrl-C also while libraries are imported.

    SIGTERM, which schedulers and shutdowns send, is answered as Ctrl-C is; but while a search runs, Ray 2.60
    answers it first and ends the program with code 1.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Later it is answered where the work is, which knows more.
        print("interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        code = INTERRUPTED
    # Another Ctrl-C has nothing left to end: it would only replace the exit code by the signal's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _guess(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
