"""One model out of many: distilled, or averaged."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_builds import build, tiny_plan
from training_runs import tiny_spec

from data.folds import SplitConfig
from data.recording import Tier
from ensembles.distillation import TaughtRecording, distill
from ensembles.manifest import EnsembleManifest, ManifestError
from ensembles.members import Member
from ensembles.soup import average_states, make_soup
from training.checkpoint import SessionIdentity, load_checkpoint
from training.encoders import load_encoder
from training.inference import official_scale
from training.losses import LossConfig, poisson_loss
from training.prediction_info import PredictionInfo
from training.predictions import PredictionStore

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def seeds(recordings, tmp_path_factory):
    plan = tiny_plan(tmp_path_factory.mktemp("seeds") / "tiny", blend="mean")
    build(plan, recordings)
    return plan.folder


@pytest.fixture(scope="module")
def folds(recordings, tmp_path_factory):
    spec = tiny_spec("factorized", epochs=2)
    members = [
        Member(name=f"fold-{fold}", spec=replace(spec, split=SplitConfig(num_folds=4, fold=fold)))
        for fold in range(3)
    ]
    plan = tiny_plan(tmp_path_factory.mktemp("folds") / "tiny", members, blend="mean")
    build(plan, recordings)
    return plan.folder


def test_a_loss_of_mixed_responses_is_the_mixed_loss():
    rng = torch.Generator().manual_seed(0)
    predicted = torch.rand(2, 3, 5, generator=rng).double().requires_grad_()
    responses, taught = (torch.rand(2, 3, 5, generator=rng).double() for _ in range(2))

    def gradient(targets):
        (found,) = torch.autograd.grad(poisson_loss(predicted, targets, LossConfig()).sum(), predicted)
        return found

    mixed = gradient(0.3 * responses + 0.7 * taught)
    torch.testing.assert_close(mixed, 0.3 * gradient(responses) + 0.7 * gradient(taught))


def test_taught_trials_are_mixed_frame_by_frame_and_others_left_alone(recordings, tmp_path):
    recording = recordings[0]
    trained = [trial for trial in recording.trials if trial.tier is Tier.TRAIN]
    taught, other = trained[:2]
    num_neurons = len(recording.neurons.ids)
    frames = (10, taught.num_frames)
    info = PredictionInfo(
        member="targets",
        session=recording.session,
        tier="train",
        trials=(taught.index,),
        frames=(frames,),
        num_neurons=num_neurons,
        neurons_sha256=SessionIdentity.of(recording).neurons_sha256,
        fingerprint=recording.fingerprint,
        checkpoint_sha256="0" * 64,
    )
    predicted = np.random.default_rng(0).random((num_neurons, frames[1] - 10)).astype(np.float32)
    store = PredictionStore(root=tmp_path)
    with store.writer(info) as writer:
        writer.write(taught.index, predicted)
    targets = store.open("targets", recording.session, "train")
    mixed = TaughtRecording(recording, targets, ratio=0.7)
    mixed = pickle.loads(pickle.dumps(mixed))
    precision = official_scale(recording).precision.numpy()
    start, stop, step = 4, 30, 2
    plain = recording.frames(taught, start, stop, step).responses.astype(float)
    found = mixed.frames(taught, start, stop, step).responses
    assert found.dtype == np.float32
    for row, frame in enumerate(range(start, stop, step)):
        for neuron in range(num_neurons):
            expected = plain[row, neuron]
            if frame >= 10:
                raw = targets.trial(taught.index)[neuron, frame - 10] / precision[frame, neuron]
                expected = 0.3 * expected + 0.7 * raw
            assert found[row, neuron] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    np.testing.assert_array_equal(
        mixed.frames(other, 0, 20).responses, recording.frames(other, 0, 20).responses.astype(np.float32)
    )
    assert mixed.fingerprint == recording.fingerprint


def test_a_student_is_scored_beside_its_teacher_and_is_not_trained_twice(seeds, recordings):
    epochs = []
    found = distill(seeds, recordings, on_epoch=lambda report: epochs.append(report.epoch))
    assert epochs == [1, 2]
    assert found.teacher == EnsembleManifest.read(seeds).direct["single_trial"]
    assert found.ratio == 0.7
    # All seeds were trained on the same trials.
    assert found.unseen_share == 0
    again = distill(seeds, recordings, on_epoch=lambda report: epochs.append(report.epoch))
    assert epochs == [1, 2]
    assert again.score == found.score
    with pytest.raises(ValueError, match=r"ratio: 0\.7 -> 0\.5"):
        distill(seeds, recordings, ratio=0.5)
    with pytest.raises(ValueError, match="must be a share"):
        distill(seeds, recordings, ratio=1.5)


def test_folds_teach_what_they_were_not_trained_on(folds, recordings):
    found = distill(folds, recordings)
    manifest = EnsembleManifest.read(folds)
    assert len(manifest.used) > 1
    assert 0 < found.unseen_share < 1


def test_a_soup_of_members_that_began_apart_is_refused(seeds, recordings):
    assert len(EnsembleManifest.read(seeds).used) > 1
    with pytest.raises(ManifestError, match=r"began with \d different parameters .*seed-"):
        make_soup(seeds, recordings)


def test_averages_are_means_of_parameters():
    one = {"a": torch.tensor([1.0, 3.0]), "n": torch.tensor(4)}
    other = {"a": torch.tensor([2.0, 5.0]), "n": torch.tensor(9)}
    average = average_states([one, other])
    assert average["a"].tolist() == [1.5, 4.0]
    assert average["n"].item() == 4


def test_a_soup_is_kept_only_if_it_is_not_worse_than_its_best_member(folds, recordings):
    found = make_soup(folds, recordings)
    assert found.judged_on == "oracle"
    assert found.is_accepted == (found.score >= max(found.scores.values()))
    assert (found.checkpoint is not None) == found.is_accepted
    assert set(found.scores) == set(EnsembleManifest.read(folds).used)


def test_a_soup_of_one_run_is_that_run_but_for_its_batch_norms(recordings, tmp_path):
    spec = tiny_spec("vivit", epochs=2)
    members = [Member(name=name, spec=spec) for name in ("one", "same")]
    plan = tiny_plan(tmp_path / "build", members, blend="mean")
    build(plan, recordings)
    found = make_soup(plan.folder, recordings)
    assert found.judged_on == "holdout"
    assert found.score == pytest.approx(found.scores["one"], abs=1e-9)
    assert found.is_accepted
    manifest = EnsembleManifest.read(plan.folder)
    single = load_checkpoint(manifest.member("one").checkpoint.locate(plan.folder).parent)[0]["encoder"]
    soup = load_encoder(plan.folder / found.checkpoint).encoder.state_dict()
    assert all(torch.equal(soup[name], tensor) for name, tensor in single.items())
