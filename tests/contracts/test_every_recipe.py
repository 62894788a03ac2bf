"""What every ensemble recipe must do. A new one adds a row to ``OPTIONS``."""

import json
import pickle
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from tiny_builds import build, tiny_members, tiny_plan
from training_runs import tiny_spec

from data.folds import SplitConfig
from data.recording import Tier
from ensembles.fusion import Fusion, score_fused
from ensembles.members import Member, in_waves
from ensembles.recipes import PAPER_SEEDS, RECIPES, RecipeOptions, make_members, spread
from models.cores.factorized import FactorizedConfig
from training.predictions import PredictionStore
from training.run import run
from training.spec import from_plain, to_plain

pytestmark = pytest.mark.timeout(240)

OPTIONS = {
    "v1fm31": RecipeOptions(),
    "v1fm31-shared": RecipeOptions(),
    "seeds": RecipeOptions(arguments=("factorized",), seeds="paper"),
    "folds": RecipeOptions(arguments=("dwiseneuro",)),
    "study": RecipeOptions(arguments=("tiny",), top=2),
    "members": RecipeOptions(arguments=("factorized-5",)),
}

RECIPE = pytest.mark.parametrize("recipe", sorted(RECIPES))


@pytest.fixture(scope="module")
def root(recordings, tmp_path_factory):
    """A folder of runs with one run and one study of two."""
    root = tmp_path_factory.mktemp("runs")
    run(tiny_spec("factorized", epochs=1), recordings, root / "factorized-5")
    for number in range(2):
        folder = root / "studies" / "tiny" / "runs" / f"{number:04d}"
        shutil.copytree(root / "factorized-5", folder)
        for state in folder.glob("checkpoints/state-*"):
            shutil.rmtree(state)
    return root


def made(recipe, root, **changes):
    return make_members(recipe, replace(OPTIONS[recipe], root=root, **changes))


def test_the_table_of_options_has_every_recipe():
    assert sorted(OPTIONS) == sorted(RECIPES)


@RECIPE
@pytest.mark.parametrize("scale", ["full", "demo"])
def test_members_have_names_that_are_folders_and_differ(recipe, scale, root):
    members = made(recipe, root, scale=scale)
    names = [member.name for member in members]
    assert len(set(names)) == len(names) > 0
    for name in names:
        assert Path(name).name == name
        assert not name.startswith(".")


@RECIPE
def test_the_same_options_give_the_same_members(recipe, root):
    assert made(recipe, root) == made(recipe, root)


@RECIPE
def test_members_survive_a_process_boundary_and_json(recipe, root):
    for member in made(recipe, root):
        assert pickle.loads(pickle.dumps(member)) == member
        assert from_plain(json.loads(json.dumps(to_plain(member.spec)))) == member.spec


@RECIPE
def test_whoever_is_needed_comes_first_and_somebody_is_pooled(recipe, root):
    members = made(recipe, root)
    waves = in_waves(members)
    assert sorted(m.name for wave in waves for m in wave) == sorted(member.name for member in members)
    assert any(member.is_pooled for member in members)


@RECIPE
def test_no_member_is_trained_on_the_tier_that_grades(recipe, root):
    assert all(Tier.ORACLE not in member.spec.split.tiers for member in made(recipe, root))


@RECIPE
def test_a_subset_is_some_of_the_members_and_those_they_need(recipe, root):
    members = made(recipe, root)
    pooled = [member for member in members if member.is_pooled]
    for count in {1, len(pooled)}:
        chosen = made(recipe, root, subset=count)
        assert sum(member.is_pooled for member in chosen) >= count
        assert [member for member in members if member in chosen] == chosen
        in_waves(chosen)
    with pytest.raises(ValueError, match="--subset is 99"):
        made(recipe, root, subset=99)


@RECIPE
def test_words_that_do_not_belong_are_refused(recipe, root):
    with pytest.raises(ValueError, match=r"behind the recipe|run is|did you mean"):
        made(recipe, root, arguments=(*OPTIONS[recipe].arguments, "and", "more"))


@pytest.mark.parametrize("recipe", ["v1fm31", "v1fm31-shared", "seeds", "folds"])
def test_settings_reach_every_member_that_is_trained(recipe, root):
    members = made(recipe, root, settings={"optimizer.core_lr": "0.0123"})
    assert {member.spec.optimizer.core_lr for member in members} == {0.0123}
    with pytest.raises(ValueError, match=r"did you mean optimizer\.core_lr"):
        made(recipe, root, settings={"optimizer.core_rl": "1"})


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"recipe is 'v1fm13', .* did you mean v1fm31\?"):
        make_members("v1fm13", RecipeOptions())


def test_members_given_twice_are_refused(root):
    with pytest.raises(ValueError, match="given twice: factorized-5"):
        made("members", root, arguments=("factorized-5", "factorized-5"))


def test_v1fm31_is_the_published_list():
    # The released code's 31 checkpoints: 15 sets of levels by two fusions, and the plain readout (A.2).
    sets = [levels for size in (1, 2, 3, 4) for levels in combinations((2, 4, 8, 16), size)]
    published = {(fusion, levels) for fusion in ("mean", "adaptive") for levels in sets} | {("mean", ())}
    members = make_members("v1fm31", RecipeOptions())
    found = {(member.spec.model.fusion, member.spec.model.levels) for member in members}
    assert len(members) == len(published) == 31
    assert found == published
    assert {member.spec.seed for member in members} == {42}
    assert {member.spec.epochs for member in members} == {180}


def test_the_shared_trunk_has_the_heads_of_v1fm31():
    alone = make_members("v1fm31", RecipeOptions())
    trunk, *heads = make_members("v1fm31-shared", RecipeOptions())
    assert [(head.name, head.spec) for head in heads] == [(member.name, member.spec) for member in alone]
    models = [trunk.spec.model.head(index) for index in range(len(trunk.spec.model.heads))]
    assert models == [member.spec.model for member in alone]
    assert not trunk.is_pooled


def test_the_ensemble_baseline_has_the_papers_seeds():
    members = make_members("seeds", OPTIONS["seeds"])
    # Turishcheva et al. 2024, Table 6.
    assert [member.spec.seed for member in members] == [
        8, 16, 42, 64, 128, 512, 1024, 2048, 4096, 16384, 32768, 131072, 262144, 1048576,
    ]  # fmt: skip
    assert len(PAPER_SEEDS) == 14
    assert {type(member.spec.model) for member in members} == {FactorizedConfig}
    assert len({replace(member.spec, seed=0) for member in members}) == 1
    vivit = make_members("seeds", RecipeOptions(arguments=("vivit",), seeds="5"))
    assert [member.spec.seed for member in vivit] == [42, 43, 44, 45, 46]
    for wrong in ("0", "many", "-1"):
        with pytest.raises(ValueError, match="--seeds is"):
            make_members("seeds", RecipeOptions(arguments=("vivit",), seeds=wrong))


def test_dwiseneuro_has_seven_folds_and_a_second_stage_that_learns_from_the_first():
    members = make_members("folds", OPTIONS["folds"])
    assert len(members) == 14
    first, second = members[:7], members[7:]
    assert [member.spec.split.fold for member in first] == list(range(7))
    assert {member.spec.model.expansion for member in first} == {7}
    assert {member.spec.model.expansion for member in second} == {6}
    for student, teacher in zip(second, first, strict=True):
        assert student.teacher == teacher.name
        assert student.spec.split == teacher.spec.split
        assert student.spec.distillation.ratio == 0.36


def test_members_of_one_recipe_share_the_seed_of_their_split():
    for recipe in ("v1fm31", "v1fm31-shared", "seeds", "folds"):
        assert len({member.spec.split.seed for member in make_members(recipe, OPTIONS[recipe])}) == 1


def test_a_subset_spans_the_list():
    members = list(tiny_members(31))
    assert [member.name for member in spread(members, 4)] == ["seed-1", "seed-11", "seed-21", "seed-31"]


@pytest.fixture(scope="module")
def orders(recordings, tmp_path_factory):
    """Two builds of the same members, given in another order, and one of three times the same member."""
    root = tmp_path_factory.mktemp("orders")
    members = tiny_members()
    plans = [
        tiny_plan(root / "forward", members, blend="mean"),
        tiny_plan(root / "backward", members[::-1], blend="mean"),
        tiny_plan(root / "same", [replace(members[0], name=f"copy-{i}") for i in range(3)]),
    ]
    return [(plan, build(plan, recordings)) for plan in plans]


def test_weights_sum_to_1_and_do_not_depend_on_the_order_of_members(orders):
    (_, forward), (_, backward), _ = orders
    for assessment in (forward, backward):
        for weights in assessment.manifest.weights.values():
            assert sum(weights.values()) == pytest.approx(1.0)
    for session, weights in forward.manifest.weights.items():
        assert backward.manifest.weights[session] == pytest.approx(weights)
    assert backward.manifest.direct == pytest.approx(forward.manifest.direct, abs=1e-6)


def test_identical_members_are_worth_what_one_of_them_is(orders, recordings):
    plan, assessment = orders[2]
    store = PredictionStore(root=plan.predictions)
    one = Fusion(members=("copy-0",), weights={recording.session: (1.0,) for recording in recordings})
    alone = score_fused(one, store, recordings, tier=Tier.ORACLE)
    assert assessment.manifest.direct["single_trial"] == pytest.approx(alone.single_trial, abs=1e-6)
    np.testing.assert_allclose(assessment.analysis.correlation, 1.0, atol=1e-6)
    assert assessment.analysis.effective_number == pytest.approx(1.0, abs=1e-6)


def test_members_with_other_hold_outs_have_none_in_common(recordings, tmp_path):
    spec = tiny_spec("factorized")
    members = [
        Member(name=str(fold), spec=replace(spec, split=SplitConfig(num_folds=4, fold=fold)))
        for fold in range(2)
    ]
    assert not any(tiny_plan(tmp_path, members).holdout(recordings).values())
    assert all(tiny_plan(tmp_path, members[:1]).holdout(recordings).values())
