import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_builds import build, tiny_members, tiny_plan
from training_runs import tiny_spec

from data.folds import SplitConfig
from data.recording import Tier
from data.sampling import LoaderConfig
from data.windows import WindowPlan
from ensembles.builder import Progress, make_members
from ensembles.holdout import HOLDOUT, common_holdout
from ensembles.identity import BuildError
from ensembles.making import make_here
from ensembles.manifest import EnsembleManifest
from ensembles.members import Member, in_waves
from ensembles.runs import find_run, member_of_run, runs_of_study
from models.cores.v1fm import V1FMConfig
from models.heads import head_state
from training.inference import score_stored, store_predictions
from training.losses import LossConfig
from training.material import Material
from training.predictions import PredictionStore
from training.ranks import Ranks
from training.results import Outcome
from training.run import run
from training.spec import InferenceConfig
from training.step import GradientConfig, accumulate_gradients

# Writing to a loaded disk can take most of a minute.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def trained(recordings, tmp_path_factory):
    """One finished run in a folder of runs."""
    root = tmp_path_factory.mktemp("runs")
    result = run(tiny_spec("factorized", epochs=2), recordings, root / "factorized-5")
    assert result.outcome is Outcome.FINISHED
    return root


def exploding(member):
    return replace(member, spec=replace(member.spec, optimizer=replace(member.spec.optimizer, core_lr=1e9)))


def test_a_failed_member_is_named_with_its_reason_and_the_others_go_on(recordings, tmp_path):
    first, second, third = tiny_members()
    plan = tiny_plan(tmp_path / "build", [first, exploding(second), third])
    assessment = build(plan, recordings)
    failed = assessment.manifest.member("seed-2")
    assert failed.outcome == "failed"
    assert "NonFiniteLossError" in failed.error
    assert failed.weight == 0
    assert failed.checkpoint is None
    assert assessment.manifest.used == ("seed-1", "seed-3")


def test_a_build_can_stop_at_the_first_failure(recordings, tmp_path):
    first, second, third = tiny_members()
    plan = tiny_plan(tmp_path / "build", [first, exploding(second), third], on_failure="stop")
    ended = []
    with pytest.raises(BuildError, match=r"seed-2 failed \(NonFiniteLossError"):
        make_members(plan, recordings, make_here, progress=Progress(ended=lambda r: ended.append(r.name)))
    assert ended == ["seed-1", "seed-2"]


def test_a_build_without_any_member_is_an_error(recordings, tmp_path):
    plan = tiny_plan(tmp_path / "build", [exploding(member) for member in tiny_members(1)])
    with pytest.raises(BuildError, match="no member is usable"):
        make_members(plan, recordings, make_here, progress=Progress())


def test_who_learns_from_a_failed_member_fails_with_the_reason(recordings, tmp_path):
    first, second, third = tiny_members()
    plan = tiny_plan(tmp_path / "build", [exploding(first), replace(second, teacher="seed-1"), third])
    results = make_members(plan, recordings, make_here, progress=Progress())
    assert [result.outcome for result in results] == ["failed", "failed", "finished"]
    assert results[1].error == "its teacher seed-1 failed"


def test_a_second_stage_learns_from_the_checkpoint_of_its_teacher(recordings, tmp_path):
    first, second = tiny_members(2)
    plan = tiny_plan(tmp_path / "build", [first, replace(second, teacher="seed-1")])
    results = make_members(plan, recordings, make_here, progress=Progress())
    assert all(result.is_usable for result in results)
    plain = (plan.member_folder("seed-2") / "result.json").read_text()
    assert str(results[0].checkpoint) in plain


def test_waves_put_teachers_first():
    first, second, third = tiny_members()
    waves = in_waves([first, replace(second, teacher="seed-1"), third])
    assert [[member.name for member in wave] for wave in waves] == [["seed-1", "seed-3"], ["seed-2"]]
    with pytest.raises(ValueError, match="seed-1 needs 'seed-9'"):
        in_waves([replace(first, teacher="seed-9")])


def test_predictions_of_a_member_have_the_score_of_its_run(recordings, trained, tmp_path):
    member = member_of_run(find_run("factorized-5", root=trained))
    plan = tiny_plan(tmp_path / "build", [member])
    make_members(plan, recordings, make_here, progress=Progress())
    store = PredictionStore(root=plan.predictions)
    oracle = score_stored(store, member.name, recordings, Tier.ORACLE)
    assessment = build(plan, recordings)
    assert assessment.manifest.direct["single_trial"] == pytest.approx(oracle.single_trial, abs=1e-6)
    holdout = plan.holdout(recordings)
    for recording in recordings:
        stored = store.open(member.name, recording.session, HOLDOUT).info.trials
        assert stored == tuple(trial.index for trial in holdout[recording.session])


def test_existing_runs_are_found_by_folder_and_name_and_nothing_is_trained(recordings, trained, tmp_path):
    by_name = find_run("factorized-5", root=trained)
    assert find_run(str(trained / "factorized-5"), root=tmp_path).checkpoint == by_name.checkpoint
    with pytest.raises(ValueError, match="did you mean factorized-5"):
        find_run("factorised-5", root=trained)
    plan = tiny_plan(tmp_path / "build", [member_of_run(by_name)])
    epochs = []
    build(plan, recordings, progress=Progress(epoch=lambda name, _: epochs.append(name)))
    assert epochs == []
    ref = EnsembleManifest.read(plan.folder).members[0].checkpoint
    assert ref.verify(plan.folder).read_bytes() == (by_name.checkpoint / "state.pt").read_bytes()


def test_a_member_trained_on_other_recordings_is_refused_with_both_fingerprints(
    recordings, trained, tmp_path
):
    member = member_of_run(find_run("factorized-5", root=trained))
    foreign = tmp_path / "foreign"
    shutil.copytree(member.source, foreign)
    info = (foreign / "checkpoint.json").read_text()
    other = "f" * 64
    (foreign / "checkpoint.json").write_text(info.replace(recordings[0].fingerprint, other))
    plan = tiny_plan(tmp_path / "build", [replace(member, source=foreign)])
    with pytest.raises(ValueError, match=f"{recordings[0].fingerprint[:12]}.*{other[:12]}"):
        plan.check(recordings)


def test_a_folder_of_another_build_is_refused_with_the_difference(recordings, tmp_path):
    plan = tiny_plan(tmp_path / "build")
    plan.claim(recordings)
    plan.claim(recordings)
    spec = plan.members[0].spec
    changed = replace(plan.members[0], spec=replace(spec, epochs=7))
    with pytest.raises(BuildError, match=r"members.seed-1.spec.values.epochs: 2 -> 7"):
        tiny_plan(tmp_path / "build", [changed, *plan.members[1:]]).claim(recordings)


def test_only_finished_runs_of_a_study_that_kept_their_encoder_become_members(trained, tmp_path):
    study = tmp_path / "studies" / "tiny"
    for number, (score, is_training) in enumerate([(0.1, False), (0.3, False), (0.9, True)]):
        folder = study / "runs" / f"{number:04d}"
        shutil.copytree(trained / "factorized-5" / "checkpoints", folder / "checkpoints")
        for state in folder.glob("checkpoints/state-*"):
            if not is_training:
                shutil.rmtree(state)
        (info,) = folder.glob("checkpoints/encoder-*/checkpoint.json")
        text = info.read_text()
        start = text.index('"score": ') + len('"score": ')
        info.write_text(text[:start] + str(score) + text[text.index(",", start) :])
    assert [run.name for run in runs_of_study(study, top=2)] == ["tiny-0001", "tiny-0000"]
    with pytest.raises(ValueError, match="--top is 3, but tiny has 2 finished runs"):
        runs_of_study(study, top=3)
    with pytest.raises(ValueError, match="did you mean tiny"):
        runs_of_study(study.with_name("tinny"), top=1)


def test_the_common_hold_out_is_held_out_by_every_run(recordings):
    spec = tiny_spec("factorized")
    same = common_holdout([spec, replace(spec, seed=9)], recordings)
    assert all(same.values())
    folds = [replace(spec, split=SplitConfig(num_folds=4, fold=fold)) for fold in range(2)]
    assert not any(common_holdout(folds, recordings).values())
    with pytest.raises(ValueError, match="oracle tier grades"):
        common_holdout([replace(spec, split=SplitConfig(tiers=(Tier.TRAIN, Tier.ORACLE)))], recordings)


def test_folds_are_chosen_by_leaving_oracle_clips_out(recordings, tmp_path):
    spec = tiny_spec("factorized", epochs=2)
    members = [
        Member(name=f"fold-{fold}", spec=replace(spec, split=SplitConfig(num_folds=4, fold=fold)))
        for fold in range(2)
    ]
    manifest = build(tiny_plan(tmp_path / "build", members), recordings).manifest
    assert manifest.chosen_on == manifest.reported_on == "oracle"
    assert manifest.protocol == "leave_one_clip_out"
    assert sum(member.weight for member in manifest.members) == pytest.approx(1.0)


def shared_members():
    model = V1FMConfig(
        clip_frames=10,
        channels=8,
        depth=1,
        num_heads=2,
        window=(4, 3, 3),
        shift=(2, 1, 1),
        mlp_channels=6,
        levels=(2,),
        init_sigma=1e-8,
    )
    spec = replace(
        tiny_spec("factorized", epochs=2),
        model=model,
        loss=LossConfig(),
        loader=LoaderConfig(clip_frames=10, batch_size=3),
        inference=InferenceConfig(windows=WindowPlan(length=10, hop=5)),
    )
    names = ("mean-2", "adaptive-2-4", "plain")
    trunk = replace(spec, model=replace(model, heads=names))
    heads = [
        Member(name=name, spec=replace(spec, model=trunk.model.head(index)), trunk="shared")
        for index, name in enumerate(names)
    ]
    return [Member(name="shared", spec=trunk, is_pooled=False), *heads]


def test_heads_of_a_shared_core_are_members_and_their_mean_is_the_trunks(recordings, tmp_path):
    plan = tiny_plan(tmp_path / "build", shared_members(), blend="mean")
    epochs = []
    assessment = build(plan, recordings, progress=Progress(epoch=lambda name, _: epochs.append(name)))
    assert epochs == ["shared", "shared"]
    assert [member.member for member in assessment.analysis.members] == ["mean-2", "adaptive-2-4", "plain"]
    store = PredictionStore(root=plan.predictions)
    checkpoint = assessment.manifest.member("shared").checkpoint.locate(plan.folder).parent
    store_predictions(checkpoint, recordings, store, member="shared", tiers=[Tier.ORACLE])
    for recording in recordings:
        files = [store.open(name, recording.session, "oracle").values.astype(float)
                 for name in ("mean-2", "adaptive-2-4", "plain", "shared")]  # fmt: skip
        np.testing.assert_allclose(np.mean(files[:3], axis=0), files[3], rtol=2e-3, atol=2e-3)


def test_the_gradient_of_a_shared_core_is_the_mean_of_its_heads_gradients(recordings):
    trunk, *heads = shared_members()
    device = torch.device("cpu")
    shared = Material.prepare(recordings, trunk.spec, device=device)
    encoder = shared.build_encoder().train()
    clips = next(iter(shared.loader(Ranks()).epoch(0)))
    batches = shared.prepare_batches(clips, seed=(1,))
    gradients = [gradient_of_core(encoder, batches, shared)]
    for index, head in enumerate(heads):
        material = Material.prepare(recordings, head.spec, device=device)
        single = material.build_encoder().train()
        single.load_state_dict(head_state(encoder.state_dict(), index))
        gradients.append(gradient_of_core(single, batches, material))
    for of_all, *of_heads in zip(*gradients, strict=True):
        torch.testing.assert_close(of_all, torch.stack(of_heads).mean(dim=0), rtol=1e-3, atol=1e-4)


def gradient_of_core(encoder, batches, material):
    config = GradientConfig(
        loss=material.spec.loss, compute=material.spec.compute, num_trials=material.num_trials, micro_batch=2
    )
    accumulate_gradients(encoder, batches, config, seed=(1,))
    return [parameter.grad for parameter in encoder.core_parameters()]
