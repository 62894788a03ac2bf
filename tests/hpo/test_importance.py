import io
import math
import warnings
from functools import partial

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console

from hpo import importance
from hpo.importance_tables import HEADINGS, cells, describe, importance_table, plain_rows

importances = partial(importance.importances, trees=25)
UNIT = FloatDistribution(0.0, 1.0)


def trials_of(function, *, number, seed, distributions, condition=None):
    rng = np.random.default_rng(seed)
    trials = []
    for _ in range(number):
        values = {}
        for name, found in distributions.items():
            if isinstance(found, CategoricalDistribution):
                values[name] = found.choices[rng.integers(len(found.choices))]
            elif isinstance(found, IntDistribution):
                values[name] = int(rng.integers(found.low, found.high + 1))
            else:
                values[name] = float(rng.uniform(found.low, found.high))
        values = {
            name: value for name, value in values.items() if condition is None or condition(name, values)
        }
        ranges = {name: distributions[name] for name in values}
        trials.append(create_trial(params=values, distributions=ranges, value=function(values, rng)))
    return trials


def by_name(found):
    return {row.name: row for row in found.rows}


def stopped(trial, last, *, outcome="pruned"):
    return create_trial(
        params=trial.params,
        distributions=trial.distributions,
        state=TrialState.PRUNED,
        intermediate_values=last,
        user_attrs={"outcome": outcome},
    )


def test_shares_are_those_of_the_variance_that_each_hyperparameter_makes():
    # The variance of a x is a**2 / 12: shares of 16, 4 and 1 in 21.
    def score(values, _):
        return 4 * values["a"] + 2 * values["b"] + values["c"]

    trials = trials_of(score, number=400, seed=0, distributions=dict.fromkeys("abcd", UNIT))
    rows = by_name(importances(trials))
    assert sum(row.forest for row in rows.values()) == pytest.approx(1.0)
    for name, share in (("a", 16 / 21), ("b", 4 / 21), ("c", 1 / 21), ("d", 0.0)):
        assert rows[name].forest == pytest.approx(share, abs=0.05), name
    # The correlation of a sum with its part: the root of the part's share of the variance.
    for name, share in (("a", 16 / 21), ("b", 4 / 21), ("c", 1 / 21)):
        assert rows[name].correlation == pytest.approx(math.sqrt(share), abs=0.1), name
    assert [rows[name].stands_out for name in "abc"] == [True, True, True]
    assert max(rows, key=lambda name: rows[name].optuna) == "a"


def test_correlation_is_numpys():
    def score(values, rng):
        return -values["a"] + rng.normal(scale=0.1)

    trials = trials_of(score, number=30, seed=1, distributions=dict.fromkeys("ab", UNIT))
    expected = np.corrcoef([trial.params["a"] for trial in trials], [trial.value for trial in trials])[0, 1]
    found = by_name(importances(trials))
    assert found["a"].correlation == pytest.approx(expected)
    assert found["a"].correlation < -0.9


def test_all_values_of_a_choice_count_together():
    # Steps 0, 1, 2 have variance 2/3, and the number as much: two shares of a half.
    steps = {"low": 0.0, "middle": 1.0, "high": 2.0}

    def score(values, _):
        return steps[values["kind"]] + math.sqrt(8) * values["a"]

    distributions = {"kind": CategoricalDistribution(list(steps)), "a": UNIT, "b": UNIT}
    rows = by_name(importances(trials_of(score, number=400, seed=2, distributions=distributions)))
    assert rows["kind"].forest == pytest.approx(0.5, abs=0.08)
    assert rows["a"].forest == pytest.approx(0.5, abs=0.08)
    assert rows["kind"].correlation is None


def test_choices_that_are_numbers_have_an_order():
    def score(values, _):
        return values["channels"] / 100

    distributions = {"channels": CategoricalDistribution([32, 64, 128]), "a": UNIT}
    rows = by_name(importances(trials_of(score, number=60, seed=3, distributions=distributions)))
    assert rows["channels"].correlation == pytest.approx(1.0)
    assert rows["channels"].forest > 0.99


def test_a_condition_is_part_of_the_hyperparameter_that_depends_on_it():
    def score(values, _):
        return 1.0 if "fusion" in values else 0.0

    distributions = {
        "levels": CategoricalDistribution(["()", "2", "2,4"]),
        "fusion": CategoricalDistribution(["mean", "adaptive"]),
        "a": UNIT,
    }
    trials = trials_of(
        score,
        number=120,
        seed=4,
        distributions=distributions,
        condition=lambda name, values: name != "fusion" or values["levels"] != "()",
    )
    rows = by_name(importances(trials))
    assert rows["levels"].forest + rows["fusion"].forest > 0.99
    assert rows["a"].forest < 0.01


def test_strides_whose_range_differs_from_run_to_run_are_ranked():
    rng = np.random.default_rng(5)
    trials = []
    for _ in range(200):
        patch = int(rng.integers(3, 17))
        stride = int(rng.integers(1, patch + 1))
        ranges = {"patch": IntDistribution(3, 16), "stride": IntDistribution(1, patch), "a": UNIT}
        values = {"patch": patch, "stride": stride, "a": float(rng.uniform())}
        trials.append(create_trial(params=values, distributions=ranges, value=-abs(stride - 2) + 0.0))
    found = importances(trials)
    assert found.rows[0].name == "stride"
    assert found.rows[0].forest > 0.9
    assert all(row.optuna is not None for row in found.rows)


def test_fit_is_that_of_unseen_runs():
    def line(values, _):
        return values["a"]

    def noise(_, rng):
        return rng.normal()

    distributions = dict.fromkeys("abc", UNIT)
    good = importances(trials_of(line, number=200, seed=6, distributions=distributions))
    nothing = importances(trials_of(noise, number=200, seed=6, distributions=distributions))
    assert good.fit > 0.98
    assert nothing.fit < 0.05
    assert good.warnings == ()


def test_twenty_runs_of_noise_in_twenty_dimensions_are_called_noise():
    names = [f"x{number:02d}" for number in range(20)]

    def noise(_, rng):
        return rng.normal()

    found = importances(trials_of(noise, number=20, seed=7, distributions=dict.fromkeys(names, UNIT)))
    text = " ".join(found.warnings)
    assert "20 runs for 20 hyperparameters cannot support a ranking" in text
    assert "the ranking is noise" in text
    # Forests of chance share out everything, too: the highest share alone proves nothing.
    assert found.rows[0].forest > 0.05


def finished(trial, curve):
    return create_trial(
        params=trial.params,
        distributions=trial.distributions,
        value=curve[max(curve)],
        intermediate_values=curve,
    )


def test_stopped_runs_count_grown_or_with_their_last_score_or_not_at_all():
    trials = trials_of(
        lambda values, _: 3 * values["a"], number=60, seed=8, distributions=dict.fromkeys("ab", UNIT)
    )
    # All curves double between epoch 2 and the end. Runs of a low score are stopped after epoch 2.
    mixed = [
        finished(trial, {2: trial.value / 2, 4: trial.value})
        if trial.value > 1
        else stopped(trial, {2: trial.value / 2})
        for trial in trials
    ]
    count = sum(trial.value > 1 for trial in trials)
    whole, grown = importances(trials), importances(mixed)
    assert [row.forest for row in grown.rows] == pytest.approx([row.forest for row in whole.rows])
    assert grown.rows[0].correlation == pytest.approx(1.0)
    last = importances(mixed, stopped="last")
    expected = [trial.value if trial.value > 1 else trial.value / 2 for trial in trials]
    assert by_name(last)["a"].correlation == pytest.approx(
        np.corrcoef([trial.params["a"] for trial in trials], expected)[0, 1]
    )
    dropped = importances(mixed, stopped="drop")
    assert (dropped.finished, dropped.stopped) == (count, 0)
    assert (grown.finished, grown.stopped) == (last.finished, last.stopped) == (count, 60 - count)
    assert describe(grown).startswith(f"from {count} finished and {60 - count} stopped runs")


def test_scores_that_begin_below_zero_are_not_grown():
    trials = trials_of(lambda values, _: values["a"], number=20, seed=8, distributions={"a": UNIT})
    mixed = [finished(trial, {1: -0.1, 4: trial.value}) for trial in trials[:10]]
    mixed += [stopped(trial, {1: trial.value}) for trial in trials[10:]]
    assert importances(mixed).rows[0].correlation == pytest.approx(1.0)


def test_an_unknown_way_to_treat_stopped_runs_is_refused():
    with pytest.raises(ValueError, match="stopped is 'best', but must be one of grown, last, drop"):
        importances([], stopped="best")


def test_what_has_no_score_is_left_out():
    def score(values, _):
        return values["a"]

    trials = trials_of(score, number=30, seed=9, distributions=dict.fromkeys("ab", UNIT))
    failed = create_trial(
        params={"a": 0.5, "b": 0.5}, distributions=dict.fromkeys("ab", UNIT), state=TrialState.FAIL
    )
    useless = [
        failed,
        stopped(trials[0], {1: math.nan}),
        stopped(trials[0], {}),
        stopped(trials[0], {1: 0.5}, outcome="infeasible"),
    ]
    found, plain = importances([*trials, *useless]), importances(trials)
    assert (found.finished, found.stopped) == (30, 0)
    assert [row.forest for row in found.rows] == [row.forest for row in plain.rows]


@pytest.mark.parametrize("number", [0, 1, 4])
def test_too_few_runs_give_no_rows_and_a_warning(number):
    trials = trials_of(lambda *_: 0.5, number=number, seed=0, distributions={"a": UNIT})
    found = importances(trials)
    assert found.rows == ()
    assert f"{number} runs have a score" in found.warnings[0]
    Console(quiet=True).print(importance_table(found))


def test_equal_scores_give_no_rows():
    assert importances(trials_of(lambda *_: 0.5, number=9, seed=0, distributions={"a": UNIT})).rows == ()


def test_five_runs_are_ranked_without_a_warning_of_numpys():
    def score(values, _):
        return values["a"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = importances(trials_of(score, number=5, seed=0, distributions=dict.fromkeys("ab", UNIT)))
    assert len(found.rows) == 2
    assert math.isfinite(found.fit)


def test_the_same_seed_gives_the_same_numbers():
    trials = trials_of(lambda v, _: v["a"], number=20, seed=0, distributions=dict.fromkeys("ab", UNIT))
    assert importances(trials) == importances(trials)
    assert importances(trials) != importances(trials, seed=100)


def test_the_table_has_every_number_of_the_rows():
    trials = trials_of(lambda v, _: v["a"], number=20, seed=0, distributions=dict.fromkeys("ab", UNIT))
    found = importances(trials)
    console = Console(width=120, file=io.StringIO())
    console.print(importance_table(found))
    text = console.file.getvalue()
    for row, plain in zip(found.rows, plain_rows(found), strict=True):
        assert all(cell in text for cell in cells(row))
        assert cells(row)[1] == f"{plain['forest']:.3f} +- {plain['spread']:.3f}"
    assert all(heading in text for heading in HEADINGS)


def test_optunas_own_shares_are_those_of_the_whole_study():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("a", 0, 1) + 0.1 * trial.suggest_float("b", 0, 1), 40)
    expected = optuna.importance.get_param_importances(study)
    found = by_name(importances(study.trials))
    for name, share in expected.items():
        assert found[name].optuna == pytest.approx(share)
