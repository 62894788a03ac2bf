import math
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from models.alike import Shortening, alike, shortened_loops
from models.cores.dwiseneuro import DwiseNeuroConfig
from models.cores.factorized import FactorizedConfig
from models.cores.gru import GRUConfig
from models.cores.v1fm import V1FMConfig
from models.cores.vivit import ViViTConfig
from models.cost import estimate_cost
from models.encoder import Core, Encoder, Readout, SessionSpec
from models.registry import MODELS

NEW_MICE = (7863, 7908, 8202, 7939, 8122)
OLD_MICE = (7440, 7928, 8285, 7671, 7495)
TEN_MICE = {f"mouse{index}": n for index, n in enumerate(NEW_MICE + OLD_MICE)}
CLIP = (2, 200, 8, 11)


class SquaringCore(Core):
    """Averages the pixels into ``width`` features and squares them ``depth`` times."""

    def __init__(self, config, frame_shape):
        super().__init__()
        self.out_channels, self.out_shape, self.depth = config.width, (1, 1), config.depth
        self.weight = nn.Parameter(torch.randn(math.prod(frame_shape), config.width))

    def forward(self, video, behavior, pupil):  # noqa: ARG002
        features = video[:, 0].flatten(2) @ self.weight
        for _ in range(self.depth):
            features = features * features
        return features.transpose(1, 2)[..., None, None]


class SummingReadout(Readout):
    def __init__(self, spec, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, spec.num_neurons))

    def forward(self, features, *, behavior, pupil, shift):  # noqa: ARG002
        return (features[..., 0, 0].transpose(1, 2) @ self.weight).transpose(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SquaringConfig:
    width: int = 1000
    depth: int = 4
    warmup_frames: int = 0
    causal: bool = True

    def build(self, sessions, frame_shape):
        core = SquaringCore(self, frame_shape)
        readouts = {spec.session: SummingReadout(spec, self.width) for spec in sessions}
        return Encoder(core, readouts, output=nn.Identity(), warmup_frames=0)


def test_peaks_are_those_counted_by_hand():
    features, pixels, neurons = 2 * 200 * 1000, 8 * 11, 3
    parameters = pixels * 1000 + 1000 * neurons
    inputs = 2 * 200 * pixels + 2 * 2 * 200 * 2
    inference = estimate_cost(SquaringConfig(), {"a": neurons}, CLIP, training=False)
    # Without gradients only a square and its input are alive.
    assert inference.peak_bytes == 4 * (parameters + inputs + 2 * features)
    training = estimate_cost(SquaringConfig(), {"a": neurons}, CLIP, training=True)
    # The four squares and their input are kept; the gradient of x * x is the sum of two equal ones, made of a
    # third. The rest is the readout's gradient and a few numbers a neuron.
    kept = 5 * features
    moments = 2 * parameters
    least = 4 * (parameters + inputs + kept + moments)
    assert (
        least <= training.peak_bytes <= least + 4 * (3 * features + 1000 * neurons + 20 * 2 * 200 * neurons)
    )


def test_memory_of_inference_does_not_grow_with_depth_and_that_of_training_does():
    def peak(depth, *, training):
        return estimate_cost(SquaringConfig(depth=depth), {"a": 3}, CLIP, training=training).peak_bytes

    assert peak(20, training=False) == peak(4, training=False)
    assert peak(20, training=True) - peak(4, training=True) == 16 * 4 * 2 * 200 * 1000


def test_flops_and_parameters_are_those_counted_by_hand():
    cost = estimate_cost(SquaringConfig(), {"a": 3, "b": 5}, CLIP, training=True)
    assert cost.parameters == 88 * 1000 + 1000 * (3 + 5)
    assert cost.flops == 2 * (2 * 200) * (88 * 1000 + 1000 * 5)


def test_the_gradients_of_all_sessions_share_a_step():
    one = estimate_cost(SquaringConfig(), {"a": 5}, CLIP, training=True)
    two = estimate_cost(SquaringConfig(), {"a": 5, "b": 3}, CLIP, training=True)
    # A parameter, its gradient and two moments.
    assert two.peak_bytes - one.peak_bytes == 4 * 4 * 1000 * 3


def test_the_published_vivit_costs_what_the_published_numbers_say():
    cost = estimate_cost(ViViTConfig(), TEN_MICE, (1, 140, 36, 64), training=False)
    assert cost.parameters == 12_278_365
    # 485.9 GFLOP with the planes written out (reference run); of the tokenizer's 69.2 a fifth is left.
    assert cost.flops / 1e9 == pytest.approx(485.9 - 0.8 * 69.2, rel=0.002)


SMALL = {
    "factorized": FactorizedConfig(channels=(3, 4), input_temporal_kernel=3, hidden_temporal_kernel=3),
    "gru": GRUConfig(num_layers=2, features=2, num_rotations=4, gru_channels=3),
    "vivit": ViViTConfig(embedding_dim=8, temporal_patch_size=3, num_heads=2, head_dim=4, ff_dim=8),
    "v1fm": V1FMConfig(clip_frames=12, channels=8, depth=2, num_heads=2, mlp_channels=6),
    "dwiseneuro": DwiseNeuroConfig(
        canvas=(24, 24),
        stem_channels=8,
        channels=(8, 12),
        strides=(2, 1),
        squeeze=4,
        cortex_channels=(16, 32),
    ),
}


def spec_of(num_neurons):
    generator = torch.Generator().manual_seed(0)
    return SessionSpec(
        session="a",
        num_neurons=num_neurons,
        coordinates_um=torch.randn(num_neurons, 3, generator=generator),
        mean_response=torch.ones(num_neurons),
    )


def vivit(**changes):
    return ViViTConfig(**({"spatial_depth": 2, "temporal_depth": 2, "max_frames": 60} | changes))


@pytest.mark.parametrize("changes", [{}, {"block": "sequential"}, {"ff_activation": "swiglu"}])
def test_flops_of_vivit_are_those_of_its_formula(changes):
    config = vivit(temporal_patch_size=10, **changes)
    steps, patches, width, inner, hidden = 31, 15 * 29, 112, 11 * 48, 136
    gated = 2 if config.ff_activation == "swiglu" else 1
    linear = steps * patches * width * (4 * inner + (gated + 1) * hidden)
    attention = steps * patches * 2 * inner
    tokenizer = steps * patches * width * 10 * 49
    expected = 2 * (tokenizer + 4 * linear + attention * (2 * patches + 2 * steps))
    cost = estimate_cost(config, {"a": 5}, (1, 40, 36, 64), training=False)
    assert cost.flops == pytest.approx(expected, rel=0.01)


def test_checkpointing_half_precision_and_inference_take_less_memory():
    def peak(config, *, training=True, dtype="float32"):
        return estimate_cost(config, {"a": 5}, (1, 40, 36, 64), training=training, dtype=dtype).peak_bytes

    full = peak(vivit())
    # Blocks keep little as it is: with two of each kind, a third is what checkpointing can take away.
    assert peak(vivit(checkpointing=True)) < 0.75 * full
    assert 0.4 * full < peak(vivit(), dtype="bfloat16") < 0.8 * full
    assert peak(vivit(), training=False) < 0.5 * full


def test_estimating_draws_no_random_numbers_and_leaves_no_trace():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    estimate_cost(SquaringConfig(), {"a": 5}, CLIP, training=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.randn(3).device.type == "cpu"


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_an_estimate_neither_disturbs_a_real_run_nor_is_disturbed_by_one(family, training):
    config, clip_shape = SMALL[family], (1, 12, 20, 24)
    first = estimate_cost(config, {"a": 5}, clip_shape, training=training)
    encoder = config.build([spec_of(5)], clip_shape[2:])
    inputs = torch.randn(1, 1, *clip_shape[1:]), torch.randn(1, 2, 12), torch.randn(1, 2, 12)
    assert torch.isfinite(encoder(*inputs, session="a")).all()
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == first.parameters
    assert estimate_cost(config, {"a": 5}, clip_shape, training=training) == first


SHORTENED = {
    # More windows than a chunk of attention holds, more frames than a chunk of spectra.
    "v1fm": (V1FMConfig(depth=1, levels=()), (3, 30, 36, 64)),
    "gru": (GRUConfig(num_layers=2), (5, 16, 36, 64)),
}


@pytest.mark.parametrize("family", SHORTENED)
def test_a_pass_that_stands_for_a_loop_costs_what_the_loop_costs(family, monkeypatch):
    config, clip_shape = SHORTENED[family]
    short = estimate_cost(config, {"a": 5}, clip_shape, training=True)
    monkeypatch.setattr("models.cost.shortened_loops", lambda: nullcontext(Shortening()))
    assert estimate_cost(config, {"a": 5}, clip_shape, training=True) == short


def test_loops_are_whole_outside_of_a_trace():
    assert list(alike(range(5))) == [0, 1, 2, 3, 4]
    with shortened_loops() as shortening:
        seen = [(number, shortening.times) for number in alike(range(5), times=4.5)]
        nested = [shortening.times for _ in alike(range(3)) for _ in alike(range(2))]
        assert list(alike([7])) == [7]
        assert shortening.times == 1
    assert seen == [(0, 4.5)]
    assert nested == [6]
    assert list(alike(range(2))) == [0, 1]


def test_what_the_model_refuses_and_unknown_precisions_are_refused():
    with pytest.raises(ValueError, match="spatial_patch_size is 7, but must be at most 6"):
        estimate_cost(vivit(), {"a": 5}, (1, 40, 6, 64), training=False)
    with pytest.raises(ValueError, match="has 20 frames, but must have"):
        estimate_cost(vivit(), {"a": 5}, (1, 20, 36, 64), training=False)
    with pytest.raises(ValueError, match="dtype is 'float64', but must be one of float32, bfloat16"):
        estimate_cost(vivit(), {"a": 5}, (1, 40, 36, 64), training=False, dtype="float64")


def test_a_spec_is_only_as_big_as_its_session():
    seen = []

    class Spy(SquaringConfig):
        def build(self, sessions, frame_shape):
            seen.extend(sessions)
            return SquaringConfig.build(self, sessions, frame_shape)

    estimate_cost(Spy(), {"a": 5, "b": 7}, CLIP, training=False)
    assert [(spec.session, spec.num_neurons) for spec in seen] == [("a", 5), ("b", 7)]
    assert all(isinstance(spec, SessionSpec) and spec.coordinates_um.is_meta for spec in seen)
