"""Every command answers --help at once, and a mistyped option with the nearest; all share exit codes."""

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data.command_line import DONE, FAILED, INTERRUPTED, MISUSED, CommandParser

ROOT = Path(__file__).parents[1]
COMMANDS = (
    ("data/download.py",),
    ("data/convert.py",),
    ("data/simulate.py",),
    ("data/show.py",),
    ("training/train.py",),
    ("hpo/search.py",),
    ("hpo/search.py", "report"),
    ("hpo/search.py", "reproduce"),
    ("ensembles/build.py",),
)
MISTYPED = {
    "data/download.py": (("F", "--to", "x", "--atempts", "3"), "did you mean --attempts?"),
    "data/convert.py": (("x", "--to", "y", "--vidoe", "uint8"), "did you mean --video?"),
    "data/simulate.py": (("--to", "x", "--scale", "dmeo"), "did you mean demo?"),
    "data/show.py": (("store", "--too", "x"), "did you mean --to?"),
    "training/train.py": (("vivit", "--recordings", "x", "--select-on", "orakel"), "did you mean oracle?"),
    "hpo/search.py": (("vivit", "--max-epoch", "3"), "did you mean --max-epochs?"),
    "ensembles/build.py": (("v1fm31", "--subst", "3"), "did you mean --subset?"),
}


def started(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": "120"},
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_takes_less_than_a_second_and_shows_examples_and_exit_codes(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = started(*command, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.returncode == DONE
    # CPU seconds: on a busy machine the clock measures the others.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert "examples:" in answer.stdout
    assert f"python {command[0]}" in answer.stdout
    codes = " ".join(answer.stdout.partition("exit codes:")[2].split())
    assert re.match(r"0 [a-z]", codes)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", answer.stdout)


@pytest.mark.parametrize("script", MISTYPED)
def test_a_mistyped_option_or_choice_is_refused_with_the_nearest(script):
    arguments, guess = MISTYPED[script]
    answer = started(script, *arguments)
    assert answer.returncode == MISUSED
    assert answer.stderr.strip().endswith(guess)
    assert not answer.stdout


def test_abbreviations_are_not_options():
    parser = CommandParser(description="")
    parser.add_argument("--recordings")
    with pytest.raises(SystemExit) as ended:
        parser.parse(["--rec", "x"])
    assert ended.value.code == MISUSED


def test_codes_are_those_that_shells_and_schedulers_know():
    assert (DONE, FAILED, MISUSED, INTERRUPTED) == (0, 1, 2, 128 + signal.SIGINT)


@pytest.mark.parametrize("ended", ["raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_an_interrupt_outside_of_the_work_is_answered_in_words(ended):
    code = (
        "import os, signal\n"
        "from data.command_line import run\n"
        f"def main(arguments):\n    {ended}\n    raise AssertionError\n"
        "run(main)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == INTERRUPTED
    assert "the same command goes on" in answer.stderr
    assert "Traceback" not in answer.stderr
