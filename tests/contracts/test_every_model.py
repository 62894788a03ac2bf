"""What every family must do. A new one adds a row to ``TINY`` and a list of parameter names."""

import copy
import re
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import pytest
import torch

from models.cores.dwiseneuro import DwiseNeuroConfig
from models.cores.factorized import FactorizedConfig
from models.cores.gru import GRUConfig
from models.cores.v1fm import V1FMConfig
from models.cores.vivit import ViViTConfig
from models.encoder import ModelConfig, SessionSpec
from models.registry import MODELS, make_model

NAMES = Path(__file__).parent / "parameter_names"
FRAME = (13, 18)

TINY = {
    "factorized": FactorizedConfig(
        channels=(3, 4),
        input_spatial_kernel=5,
        hidden_spatial_kernel=3,
        input_temporal_kernel=3,
        hidden_temporal_kernel=3,
    ),
    "gru": GRUConfig(
        num_layers=2,
        features=2,
        num_rotations=4,
        input_kernel=5,
        hidden_kernel=3,
        gru_channels=3,
        gru_input_kernel=3,
        gru_recurrent_kernel=3,
    ),
    "vivit": ViViTConfig(
        embedding_dim=8,
        spatial_depth=1,
        temporal_depth=1,
        spatial_patch_size=5,
        spatial_patch_stride=3,
        temporal_patch_size=3,
        num_heads=2,
        head_dim=4,
        ff_dim=8,
        max_frames=40,
    ),
    "v1fm": V1FMConfig(
        clip_frames=10,
        channels=8,
        depth=2,
        num_heads=2,
        window=(4, 3, 3),
        shift=(2, 1, 1),
        mlp_channels=6,
        levels=(2, 4),
        fusion="adaptive",
    ),
    "dwiseneuro": DwiseNeuroConfig(
        canvas=(20, 20),
        stem_channels=8,
        channels=(8, 12),
        strides=(2, 1),
        expansion=2,
        squeeze=4,
        cortex_channels=(16, 32),
        readout_dropout=0.0,
    ),
}

NEED_ROOM = {"factorized", "gru", "vivit"}
"""Families whose kernels or patches, as above, do not fit into five rows."""

TAKE_ONE_LENGTH = {"v1fm"}
"""Families whose clips always have the same number of frames."""

FAMILIES = pytest.mark.parametrize("family", sorted(MODELS))


def session(name: str, num_neurons: int) -> SessionSpec:
    generator = torch.Generator().manual_seed(num_neurons)
    return SessionSpec(
        session=name,
        num_neurons=num_neurons,
        coordinates_um=600 * torch.rand(num_neurons, 3, generator=generator),
        mean_response=torch.rand(num_neurons, generator=generator),
    )


def build(config: ModelConfig, *, neurons=(5, 7), seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config.build([session(f"mouse{n}", n) for n in neurons], FRAME)


def clips(family: str, *, num_clips=2, num_frames=10, frame=FRAME, seed=1):
    assert num_frames > TINY[family].warmup_frames
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_clips, 1, num_frames, *frame, generator=generator),
        torch.randn(num_clips, 2, num_frames, generator=generator),
        torch.randn(num_clips, 2, num_frames, generator=generator),
    )


def test_the_table_of_tiny_configs_has_every_family():
    assert sorted(TINY) == sorted(MODELS)


@FAMILIES
def test_rates_are_finite_not_negative_and_of_the_frames_after_the_warm_up(family):
    encoder = build(TINY[family])
    for training in (True, False):
        rates = encoder.train(training)(*clips(family), session="mouse7")
        assert rates.shape == (2, 7, 10 - TINY[family].warmup_frames)
        assert torch.isfinite(rates).all()
        assert (rates >= 0).all()


@FAMILIES
def test_every_parameter_of_core_and_session_gets_a_gradient(family):
    encoder = build(TINY[family], neurons=(7,)).train()
    torch.manual_seed(0)
    (encoder(*clips(family, num_clips=4), session="mouse7").square().sum() + encoder.regularizer()).backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == []


@FAMILIES
def test_the_same_seed_gives_the_same_parameters(family):
    one, same, other = (build(TINY[family], seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@FAMILIES
def test_evaluation_is_deterministic_and_leaves_the_parameters_alone(family):
    encoder = build(TINY[family]).eval()
    before = copy.deepcopy(encoder.state_dict())
    first, again = (encoder(*clips(family), session="mouse5") for _ in range(2))
    assert torch.equal(first, again)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


@FAMILIES
def test_training_one_session_leaves_the_readout_of_another_alone(family):
    encoder = build(TINY[family]).train()
    encoder(*clips(family, num_clips=4), session="mouse5").sum().backward()
    assert all(parameter.grad is None for parameter in encoder.session_parameters("mouse7"))
    assert all(parameter.grad is not None for parameter in encoder.session_parameters("mouse5"))


@FAMILIES
def test_clips_of_a_batch_do_not_see_each_other_in_evaluation(family):
    encoder = build(TINY[family]).eval()
    video, behavior, pupil = clips(family)
    both = encoder(video, behavior, pupil, session="mouse7")
    alone = encoder(video[1:], behavior[1:], pupil[1:], session="mouse7")
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@FAMILIES
def test_a_causal_model_does_not_see_later_frames(family):
    config = TINY[family]
    if not config.causal:
        pytest.skip(f"{family} says that it sees the whole clip")
    encoder = build(config).eval()
    video, behavior, pupil = clips(family)
    before = encoder(video, behavior, pupil, session="mouse7")
    changed = [tensor.clone() for tensor in (video, behavior, pupil)]
    for tensor in changed:
        tensor[:, :, -1] += 5.0
    after = encoder(*changed, session="mouse7")
    torch.testing.assert_close(before[..., :-1], after[..., :-1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before[..., -1], after[..., -1])


@FAMILIES
def test_a_saved_state_makes_another_encoder_equal(family, tmp_path):
    encoder, other = build(TINY[family], seed=0).eval(), build(TINY[family], seed=1).eval()
    torch.save(encoder.state_dict(), tmp_path / "state.pt")
    before = other(*clips(family), session="mouse5")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected = encoder(*clips(family), session="mouse5")
    assert not torch.allclose(before, expected)
    assert torch.equal(other(*clips(family), session="mouse5"), expected)


@FAMILIES
def test_parameter_names_are_those_on_record(family):
    # Renaming a parameter makes every checkpoint unreadable.
    names = [name for name, _ in build(TINY[family]).named_parameters()]
    assert names == (NAMES / f"{family}.txt").read_text().split()


@FAMILIES
def test_a_single_neuron_works(family):
    encoder = build(TINY[family], neurons=(1,)).train()
    rates = encoder(*clips(family), session="mouse1")
    rates.sum().backward()
    assert rates.shape[1] == 1


@FAMILIES
def test_bfloat16_stays_close_to_float32(family):
    encoder = build(TINY[family]).eval()
    exact = encoder(*clips(family), session="mouse7")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(*clips(family), session="mouse7").float()
    # Eight bits of mantissa, a few dozen roundings deep.
    assert (rough - exact).abs().max() <= 0.1 * exact.abs().max()


@FAMILIES
def test_an_unknown_session_is_refused_with_the_known_ones(family):
    with pytest.raises(ValueError, match="session is 'mouse9', but must be one of mouse5, mouse7"):
        build(TINY[family])(*clips(family), session="mouse9")


@FAMILIES
def test_a_clip_without_a_frame_to_predict_is_refused(family):
    video, behavior, pupil = clips(family)
    frames = max(TINY[family].warmup_frames, 0)
    if frames == 0:
        pytest.skip(f"{family} predicts every frame")
    with pytest.raises(ValueError, match="frames"):
        build(TINY[family])(
            video[:, :, :frames], behavior[..., :frames], pupil[..., :frames], session="mouse7"
        )


def wrong_values(value):
    """Return values that are not what a field with this one holds."""
    if isinstance(value, bool):
        return [1, "yes", None]
    if isinstance(value, int):
        return ["3", 2.5, True, None, float("nan"), (1,), -1]
    if isinstance(value, float):
        return ["0.1", True, None, float("nan"), float("inf"), (0.1,), -1.0]
    if isinstance(value, str):
        return [1, None, "no such word", ("mean",)]
    return [list(value), 1, None, "12", (None,), ("x", 1.5, True)]


@FAMILIES
def test_a_value_that_does_not_fit_its_field_is_refused_with_field_value_and_rule(family):
    config = make_model(family)
    hints = get_type_hints(type(config))
    for field in fields(config):
        for wrong in wrong_values(getattr(config, field.name)):
            if wrong is None and NoneType in get_args(hints[field.name]):
                continue
            changed = copy.copy(config)
            # The tests' type checker would refuse some of them before the configuration can.
            object.__setattr__(changed, field.name, wrong)
            start = re.escape(f"{field.name} is {wrong!r}, but must ")
            with pytest.raises(ValueError, match=f"^{start}"):
                changed.__post_init__()


@FAMILIES
@pytest.mark.parametrize("frame", [(1, 1), (3, 5), (11, 17)])
def test_frames_of_any_size_work_or_are_refused_by_name(family, frame):
    config, sessions = TINY[family], [session("mouse1", 1), session("mouse3", 3)]
    if family in NEED_ROOM and frame != (11, 17):
        with pytest.raises(ValueError, match=r"^(frame_shape|spatial_patch_size) is .*, but must be"):
            config.build(sessions, frame)
        return
    encoder = config.build(sessions, frame)
    for num_neurons in (1, 3):
        video, behavior, pupil = clips(family, num_clips=1, frame=frame)
        rates = encoder.train()(video, behavior, pupil, session=f"mouse{num_neurons}")
        rates.sum().backward()
        assert rates.shape == (1, num_neurons, 10 - config.warmup_frames)
        assert torch.isfinite(rates).all()


@FAMILIES
def test_the_shortest_clip_gives_one_frame_or_is_refused(family):
    config = TINY[family]
    encoder = build(config).eval()
    num_frames = config.warmup_frames + 1
    clip = clips(family, num_clips=1, num_frames=num_frames)
    if family in TAKE_ONE_LENGTH:
        with pytest.raises(ValueError, match=f"has {num_frames} frames, but must have"):
            encoder(*clip, session="mouse5")
        return
    rates = encoder(*clip, session="mouse5")
    assert rates.shape == (1, 5, 1)
    assert torch.isfinite(rates).all()


@FAMILIES
def test_sessions_that_no_encoder_could_tell_apart_are_refused(family):
    config = TINY[family]
    with pytest.raises(ValueError, match=r"sessions is \[\], but must be one or more"):
        config.build([], FRAME)
    with pytest.raises(ValueError, match=r"sessions is \['a', 'a'\], but must be of different names"):
        config.build([session("a", 3), session("a", 4)], FRAME)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["coordinates_um", "mean_response"])
def test_neurons_without_a_place_or_response_are_refused(name, wrong):
    good = session("mouse", 3)
    changed = {"coordinates_um": good.coordinates_um.clone(), "mean_response": good.mean_response.clone()}
    changed[name][1] = wrong
    with pytest.raises(ValueError, match=f"{name} of mouse has . numbers that are not finite"):
        SessionSpec(session="mouse", num_neurons=3, **changed)


@pytest.mark.parametrize("name", ["behavior", "pupil"])
def test_signals_of_another_length_than_the_video_are_refused(name):
    video, behavior, pupil = clips("factorized")
    cut = {"behavior": behavior, "pupil": pupil} | {name: behavior[..., 1:]}
    encoder = build(TINY["factorized"])
    # Without the tests' own check of shapes, which would see it first.
    features = getattr(type(encoder).features, "__wrapped__", type(encoder).features)
    with pytest.raises(ValueError, match=f"{name} has 9 frames, but must have as many as the video, 10"):
        features(encoder, video, **cut)


def test_an_unknown_family_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"model is 'vivi', .* did you mean vivit\?"):
        make_model("vivi")


@pytest.mark.timeout(180)
def test_every_core_goes_through_the_compiler():
    # In a process of its own: pytest's shape checks would be compiled along.
    script = textwrap.dedent(
        """
        import sys; sys.path.insert(0, "tests/contracts")
        import torch
        from test_every_model import TINY, build, clips
        for family, config in TINY.items():
            encoder = build(config).eval()
            expected = encoder(*clips(family), session="mouse5")
            encoder.core.compile(backend="aot_eager")
            with torch.no_grad():
                found = encoder(*clips(family), session="mouse5")
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        print("compiled")
        """
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.stdout.strip() == "compiled", done.stderr[-2000:]
