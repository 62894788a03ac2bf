"""Hyperband's brackets against their definition and against Optuna's own."""

import math

import optuna
import pytest
from hpo_search import FastObjective, search

from hpo.pruning import PruningConfig, bracket_budgets, bracket_counts, bracket_of

CASES = [
    (1, 9, 3),
    (1, 27, 3),
    (2, 18, 3),
    (1, 16, 2),
    (7, 60, 3),
    (1, 4, 3),
    (1, 243, 3),
    (3, 3, 2),
    (5, 60, 4),
]


def whole_log(value, base):
    """floor(log_base(value)) by multiplication: no rounding."""
    power = 0
    while base ** (power + 1) <= value:
        power += 1
    return power


@pytest.mark.parametrize(("smallest", "largest", "eta"), CASES)
def test_brackets_and_their_shares_are_those_of_algorithm_1(smallest, largest, eta):
    config = PruningConfig(min_epochs=smallest, max_epochs=largest, reduction=eta)
    # Li et al. 2018, algorithm 1, with R in units of the smallest resource.
    s_max = whole_log(largest / smallest, eta)
    expected = [math.ceil((s_max + 1) * eta**s / (s + 1)) for s in range(s_max, -1, -1)]
    assert bracket_budgets(len(config.rungs), reduction=eta) == expected
    for bracket, rungs in enumerate(config.rungs):
        powers = [smallest * eta**k for k in range(bracket, s_max + 1)]
        assert rungs == [epoch for epoch in powers if epoch < largest]


@pytest.mark.parametrize(("smallest", "largest", "eta"), CASES)
def test_a_run_is_in_the_bracket_that_optuna_puts_it_in(smallest, largest, eta):
    config = PruningConfig(min_epochs=smallest, max_epochs=largest, reduction=eta)
    pruner = config.build()
    study = optuna.create_study(study_name="vivit", direction="maximize", pruner=pruner)
    trial = study.ask()
    trial.report(0.0, 1)
    trial.should_prune()
    for number in range(100):
        frozen = optuna.trial.create_trial(value=0.0)
        frozen.number = number
        assert bracket_of("vivit", number, config) == pruner._get_bracket_id(study, frozen)


def test_runs_are_shared_out_in_proportion_to_the_budgets():
    config = PruningConfig(min_epochs=1, max_epochs=27, reduction=3)
    budgets = bracket_budgets(4, reduction=3)
    counts = bracket_counts("vivit", 20_000, config)
    for bracket, budget in enumerate(budgets):
        share = budget / sum(budgets)
        # Four standard deviations of a binomial share.
        assert abs(counts[bracket] / 20_000 - share) < 4 * math.sqrt(share * (1 - share) / 20_000)


def test_no_run_is_stopped_between_its_brackets_rungs(tmp_path):
    objective = FastObjective(log=tmp_path / "log", epochs=9)
    trials = search(tmp_path, total=40, epochs=9, sampler="random", objective=objective)
    config = PruningConfig(max_epochs=9)
    stopped = {}
    for trial in trials:
        epochs = len(trial.intermediate_values)
        bracket = bracket_of("vivit", trial.number, config)
        assert epochs == 9 or epochs in config.rungs[bracket]
        stopped.setdefault(bracket, []).append(epochs)
    assert min(stopped[0]) == 1
    assert min(stopped[2]) == 9
