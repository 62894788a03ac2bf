import json

import pytest
from tiny_builds import NUM_EPOCHS, build, tiny_members, tiny_plan

from ensembles.builder import Progress
from ensembles.manifest import EnsembleManifest
from ensembles.verification import verify

# Writing to a loaded disk can take most of a minute.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def built(recordings, tmp_path_factory):
    plan = tiny_plan(tmp_path_factory.mktemp("builds") / "tiny")
    return plan, build(plan, recordings)


def without_time(folder):
    plain = json.loads((folder / "ensemble.json").read_text())
    del plain["time"]
    return plain


def test_a_build_leaves_a_manifest_that_verifies(built, recordings):
    plan, assessment = built
    manifest = EnsembleManifest.read(plan.folder)
    assert manifest == assessment.manifest
    assert manifest.chosen_on == "holdout"
    assert manifest.reported_on == "oracle"
    findings = verify(plan.folder, recordings)
    assert [finding for finding in findings if not finding.holds] == []
    assert len(findings) == 7


def test_building_again_trains_nothing_and_gives_the_same_manifest(built, recordings):
    plan, _ = built
    before = without_time(plan.folder)
    epochs = []
    build(plan, recordings, progress=Progress(epoch=lambda name, _: epochs.append(name)))
    assert epochs == []
    assert without_time(plan.folder) == before


def test_two_builds_of_one_recipe_give_the_same_manifest_but_for_time(built, recordings, tmp_path):
    plan, _ = built
    other = tiny_plan(tmp_path / "tiny")
    epochs = []
    build(other, recordings, progress=Progress(epoch=lambda name, _: epochs.append(name)))
    assert len(epochs) == NUM_EPOCHS * len(tiny_members())
    assert without_time(other.folder) == without_time(plan.folder)
