import json
import shutil

import numpy as np
import pytest
from tiny_builds import build, tiny_plan

from ensembles.fusion import Fusion, fuse, predict_fused, score_fused
from ensembles.manifest import EnsembleManifest, FileRef, ManifestError
from ensembles.verification import verify
from training.encoders import load_encoder
from training.predictions import PredictionStore

# Writing to a loaded disk can take most of a minute.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def finished(recordings, tmp_path_factory):
    plan = tiny_plan(tmp_path_factory.mktemp("builds") / "tiny", blend="zscored")
    build(plan, recordings)
    return plan.folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def broken(root, recordings=()):
    return {finding.check for finding in verify(root, recordings) if not finding.holds}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    # Not in place: members taken from other runs share their files.
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "members/../../x", "a\\b", ""])
def test_paths_that_lead_out_of_the_build_are_refused(path):
    with pytest.raises(ManifestError, match="but must be one below"):
        FileRef(path=path, sha256="0" * 64)


def test_links_that_lead_out_of_the_build_are_refused(tmp_path):
    (tmp_path / "outside").write_text("x")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ManifestError, match="leads out of"):
        FileRef(path="link", sha256="0" * 64).verify(tmp_path / "build")


def test_a_manifest_with_a_hostile_path_cannot_be_read(copy):
    path = copy / "ensemble.json"
    path.write_text(path.read_text().replace('"path": "scales/', '"path": "../scales/', 1))
    with pytest.raises(ManifestError, match="must be one below"):
        EnsembleManifest.read(copy)


def test_a_copied_build_verifies_also_against_the_recordings(copy, recordings):
    assert broken(copy, recordings) == set()
    assert broken(copy) == set()


def test_one_changed_bit_is_found_in_checkpoint_prediction_and_scales(copy, recordings):
    manifest = EnsembleManifest.read(copy)
    flip(manifest.member(manifest.used[0]).checkpoint.locate(copy))
    assert broken(copy) == {"checkpoints"}
    flip(next(copy.glob("predictions/seed-1/*/oracle.npy")))
    assert broken(copy) >= {"checkpoints", "predictions"}
    flip(next(copy.glob("scales/*.npy")))
    assert broken(copy) >= {"checkpoints", "predictions", "weights", "score from evidence"}


def test_a_score_that_is_not_so_is_found(copy):
    path = copy / "ensemble.json"
    plain = json.loads(path.read_text())
    plain["direct"]["single_trial"] += 0.01
    path.write_text(json.dumps(plain))
    assert broken(copy) == {"score from evidence"}


def test_other_recordings_are_found(finished, recordings):
    findings = {finding.check: finding for finding in verify(finished, recordings[:1])}
    assert not findings["data"].holds
    assert recordings[1].session in findings["data"].words
    assert not findings["score from predictions"].holds


def test_a_folder_without_a_build_says_so(tmp_path):
    with pytest.raises(ManifestError, match="holds no finished build"):
        EnsembleManifest.read(tmp_path)


def test_fusing_is_a_weighted_sum_over_common_frames():
    rng = np.random.default_rng(0)
    parts = {
        "a": ((50, 60), rng.random((3, 10)).astype(np.float32)),
        "b": ((48, 58), rng.random((3, 10)).astype(np.float32)),
    }
    scales = rng.random((2, 3)) + 0.5
    fusion = Fusion(members=("a", "b"), weights={"mouse": (0.25, 0.75)}, scales={"mouse": scales})
    frames, fused = fuse(parts, fusion, session="mouse")
    assert frames == (50, 58)
    for neuron in range(3):
        for frame in range(50, 58):
            expected = (
                0.25 * scales[0, neuron] * parts["a"][1][neuron, frame - 50]
                + 0.75 * scales[1, neuron] * parts["b"][1][neuron, frame - 48]
            )
            assert fused[neuron, frame - 50] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="no predicted frame"):
        fuse(parts | {"b": ((0, 10), parts["b"][1])}, fusion, session="mouse")


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1.5, -0.5), (np.nan, 1.0), (1.0,)])
def test_weights_must_be_shares(weights):
    with pytest.raises(ValueError, match="must"):
        Fusion(members=("a", "b"), weights={"mouse": weights})


def test_predicting_together_is_the_weighted_mean_of_what_is_stored(finished, recordings):
    manifest = EnsembleManifest.read(finished)
    fusion = manifest.fusion(finished)
    assert fusion.scales is not None
    encoders = {
        name: load_encoder(manifest.member(name).checkpoint.locate(finished).parent)
        for name in fusion.members
    }
    store = PredictionStore(root=finished / "predictions")
    for recording in recordings:
        trials = [trial for trial in recording.trials if trial.tier == "oracle"]
        for one in predict_fused(fusion, encoders, recording, trials):
            expected = sum(
                fusion.factors(recording.session, name)
                * store.open(name, recording.session, "oracle").trial(one.trial.index)
                for name in fusion.members
            )
            # What is stored is in half precision.
            np.testing.assert_allclose(one.predicted, expected, rtol=2e-3, atol=1e-5)


def test_the_mean_of_one_member_is_the_member(finished, recordings):
    store = PredictionStore(root=finished / "predictions")
    weights = {recording.session: (1.0,) for recording in recordings}
    alone = score_fused(
        Fusion(members=("seed-1",), weights=weights), store, recordings, tier="oracle"
    ).single_trial
    thrice = Fusion(members=("seed-1",) * 3, weights=dict.fromkeys(weights, (0.2, 0.3, 0.5)))
    assert score_fused(thrice, store, recordings, tier="oracle").single_trial == pytest.approx(
        alone, abs=1e-6
    )


def test_frames_of_a_manifest_survive_reading(finished):
    manifest = EnsembleManifest.read(finished)
    assert manifest.used
    assert sum(member.weight for member in manifest.members) == pytest.approx(1.0)
    assert manifest.frames == (50, 300)
