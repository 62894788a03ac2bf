"""What a person sees: a live table on a terminal, one line per event elsewhere."""

import io
import re

from hpo_search import FastObjective, make_result, open_study
from rich.console import Console

from hpo.display import SearchDisplay, sparkline
from hpo.driver import Driver, Limits
from training.results import Outcome


def shown(root, *, terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160)
    study = open_study(root)
    limits = Limits(runs=6)
    with SearchDisplay(study, console, limits) as display:
        Driver(study, limits, observers=[display]).run_here(FastObjective(log=root / "log", seconds=0.05))
        display._drawn = 0.0
        display._curves[5] = []
        display.refresh()
    trials = study.trials()
    study.close()
    return stream.getvalue(), trials


def test_a_log_gets_one_plain_line_per_event(tmp_path):
    text, trials = shown(tmp_path, terminal=False)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert len(lines) == 2 * len(trials)
    for trial in trials:
        mine = [line for line in lines if re.search(rf"run +{trial.number} ", line)]
        assert len(mine) == 2
        assert "started" in mine[0]
        assert trial.user_attrs["outcome"] in mine[1]
        assert f"{len(trial.intermediate_values)} epochs" in mine[1]


def test_a_terminal_gets_a_table_of_running_and_best_runs(tmp_path):
    text, trials = shown(tmp_path, terminal=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    last = plain[plain.rindex("runs:") :]
    for heading in ("run", "epoch", "score", "curve", "bracket", "clips/s", "left", "core lr", "batch"):
        assert heading in last
    best = max((trial for trial in trials if trial.values), key=lambda trial: trial.values[0])
    assert f"{best.values[0]:.4f}" in last
    assert "done" in last
    assert re.search(r"\b0/4\b", last)


def test_a_run_that_failed_says_why(tmp_path):
    stream = io.StringIO()
    study = open_study(tmp_path)
    with SearchDisplay(study, Console(file=stream, width=200), Limits()) as display:
        asked = study.ask(total=1)
        result = make_result(
            asked.spec, tmp_path / "0000", Outcome.FAILED, epochs=1, error="the disk is full"
        )
        display.ended(asked.number, result)
    assert "failed" in stream.getvalue()
    assert "the disk is full" in stream.getvalue()
    study.close()


def test_a_sparkline_rises_with_its_values_and_skips_what_is_no_number():
    assert sparkline([0.0, 0.5, float("nan"), 1.0]) == "\u2581\u2585\u2588"
    assert sparkline([]) == ""
