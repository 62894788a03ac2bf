from pathlib import Path

import optuna
import pytest

from hpo.space import Ask, Bounds, ConflictError, Known, plain, plan_space
from hpo.spaces import SPACES
from training.names import flatten, with_values
from training.recipes import recipe


def suggest(ask):
    patch = ask.whole("model.spatial_patch_size", 3, 16)
    ask.whole("model.spatial_patch_stride", 1, 16, limit=patch)
    ask.number("optimizer.core_lr", 1e-4, 1e-2)


def drawn(bounds, number=50):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    answers = []
    for _ in range(number):
        ask = Ask(study.ask(), bounds)
        try:
            suggest(ask)
        except ConflictError as error:
            answers.append(str(error))
        else:
            answers.append(ask.values)
    return answers


def test_a_stride_is_never_longer_than_its_patch():
    for values in drawn(Bounds(), 200):
        assert 1 <= values["model.spatial_patch_stride"] <= values["model.spatial_patch_size"]


def test_a_narrowed_stride_keeps_to_the_patch_and_to_what_is_fixed():
    answers = drawn(Bounds(narrowed={"model.spatial_patch_stride": (2, 8)}), 200)
    values = [answer for answer in answers if not isinstance(answer, str)]
    assert len(values) == 200
    for value in values:
        assert 2 <= value["model.spatial_patch_stride"] <= min(8, value["model.spatial_patch_size"])


def test_a_stride_fixed_above_a_runs_patch_makes_that_run_infeasible_and_no_other():
    answers = drawn(Bounds(pinned={"model.spatial_patch_stride": "9"}), 200)
    values = [answer for answer in answers if not isinstance(answer, str)]
    assert 0 < len(values) < 200
    assert all(value["model.spatial_patch_size"] >= 9 for value in values)
    assert all("stride is 9, but must be at most" in text for text in answers if isinstance(text, str))


def test_a_fixed_value_that_contradicts_the_recipe_leaves_a_study_without_a_first_run():
    plan = plan_space(
        "vivit",
        SPACES["vivit"]["full"],
        recipe("vivit"),
        Bounds(pinned={"model.spatial_patch_stride": "9"}),
    )
    assert plan.published == {}


def test_a_stride_outside_of_every_patch_is_refused():
    with pytest.raises(ValueError, match="stride is 17, but the space goes from 1 to 16"):
        plan_space("vivit", suggest, recipe("vivit"), Bounds(pinned={"model.spatial_patch_stride": "17"}))


def test_narrowed_whole_numbers_stay_on_the_steps():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    seen = set()
    for _ in range(100):
        ask = Ask(study.ask(), Bounds(narrowed={"model.head_dim": (10, 30)}))
        seen.add(ask.whole("model.head_dim", 8, 512, step=8))
    assert seen == {16, 24}


@pytest.mark.parametrize(
    ("value", "text"), [((2, 4, 8), "2,4,8"), ((), "()"), ([3], "3"), ("gelu", "gelu"), (5, 5), (True, True)]
)
def test_several_numbers_are_stored_as_text(value, text):
    assert plain(value) == text


@pytest.mark.parametrize("text", ["2,8", "(2, 8)", "[2,8]"])
def test_a_set_of_levels_can_be_pinned_however_it_is_written(text):
    bounds = Bounds(pinned={"model.levels": text})
    plan = plan_space("v1fm", SPACES["v1fm"]["full"], recipe("v1fm"), bounds)
    spec = plan.space.spec(optuna.create_study().ask(), bounds)
    assert spec.model.levels == (2, 8)


def test_no_levels_can_be_pinned_and_leave_nothing_to_fuse():
    bounds = Bounds(pinned={"model.levels": "()"})
    plan = plan_space("v1fm", SPACES["v1fm"]["full"], recipe("v1fm"), bounds)
    trial = optuna.create_study().ask()
    assert plan.space.spec(trial, bounds).model.levels == ()
    assert trial.params.keys() == {"optimizer.core_lr", "model.channels"}


def test_a_numeric_choice_can_be_pinned_however_it_is_written():
    bounds = Bounds(pinned={"optimizer.core_lr": "1e-3", "model.channels": "64"})
    plan = plan_space("v1fm", SPACES["v1fm"]["full"], recipe("v1fm"), bounds)
    spec = plan.space.spec(optuna.create_study().ask(), bounds)
    assert (spec.optimizer.core_lr, spec.model.channels) == (0.001, 64)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (Bounds(pinned={"model.channels": "48"}), "channels is '48', but must be one of"),
        (Bounds(pinned={"model.levels": "3"}), "levels is '3', but must be one of"),
        (Bounds(narrowed={"model.levels": (2, 4)}), "levels cannot be narrowed, but can be pinned"),
        (Bounds(narrowed={"model.level": (2, 4)}), "did you mean model.levels"),
    ],
)
def test_what_is_not_a_choice_is_refused_with_the_choices(bounds, message):
    with pytest.raises(ValueError, match=message):
        plan_space("v1fm", SPACES["v1fm"]["full"], recipe("v1fm"), bounds)


def test_widths_are_multiples_of_the_recipes_own():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    seen = set()
    for _ in range(60):
        ask = Ask(study.ask(), base={"model.channels": (6, 13, 30)})
        seen.add(ask.multiple("model.channels", (0.5, 1.0, 2.0), step=4))
    # Rounded to the nearest multiple of 4, and never to none.
    assert seen == {"4,8,16", "8,12,32", "12,24,60"}


def test_the_ranges_around_a_run_say_what_lies_outside():
    base = with_values(recipe("vivit"), {"optimizer.core_lr": 0.5})
    known = Known(flatten(base))
    suggest(Ask(known))
    assert known.ranges == {
        "model.spatial_patch_size": "3 to 16",
        "model.spatial_patch_stride": "1 to 7",
        "optimizer.core_lr": "0.0001 to 0.01",
    }
    assert known.outside == {"optimizer.core_lr"}
    assert "optimizer.core_lr" not in plan_space("vivit", suggest, base, Bounds()).published


def test_the_example_in_the_docs_asks_for_what_it_says():
    text = (Path(__file__).parents[2] / "docs" / "adding-spaces.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    example = {}
    exec(code, example)
    known = {"model.channels": 8, "model.kernel": 5, "optimizer.core_lr": 0.005, "loader.batch_size": 8}
    for name in ("suggest", "suggest_demo"):
        asked = Known(known)
        example[name](Ask(asked))
        assert asked.ranges.keys() == known.keys()
        assert asked.outside == set()
