import pytest
import torch

from benchmarks.straightforward import STRAIGHTFORWARD
from benchmarks.straightforward.v1fm import PlainV1FM
from models.encoder import SessionSpec
from models.registry import MODELS

SMALL = {
    "dwiseneuro": {
        "canvas": (12, 15),
        "stem_channels": 4,
        "channels": (4, 8),
        "strides": (2, 1),
        "expansion": 2,
        "squeeze": 4,
        "cortex_channels": (12, 16),
        "drop_path": 0.0,
        "cortex_drop_path": 0.0,
        "readout_dropout": 0.0,
    },
    "factorized": {
        "channels": (3, 4),
        "input_spatial_kernel": 3,
        "hidden_spatial_kernel": 2,
        "input_temporal_kernel": 3,
        "hidden_temporal_kernel": 2,
    },
    "gru": {
        "num_layers": 2,
        "features": 2,
        "num_rotations": 4,
        "input_kernel": 3,
        "hidden_kernel": 3,
        "gru_channels": 4,
        "gru_input_kernel": 3,
        "gru_recurrent_kernel": 3,
    },
    "v1fm": {
        "clip_frames": 8,
        "channels": 8,
        "depth": 2,
        "num_heads": 2,
        "window": (3, 4, 3),
        "shift": (1, 2, 1),
    },
    "vivit": {
        "embedding_dim": 8,
        "spatial_depth": 1,
        "temporal_depth": 1,
        "spatial_patch_size": 3,
        "temporal_patch_size": 4,
        "num_heads": 2,
        "head_dim": 4,
        "ff_dim": 6,
        "patch_dropout": 0.0,
        "attention_dropout": 0.0,
        "ff_dropout": 0.0,
        "drop_path": 0.0,
        "max_frames": 10,
    },
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", list(MODELS))
def test_the_straightforward_model_computes_the_same_output_and_gradients(family, training):
    if family not in STRAIGHTFORWARD:
        pytest.fail(f"benchmarks/straightforward has no {family}: write it beside the others")
    torch.manual_seed(0)
    spec = SessionSpec(
        session="mouse", num_neurons=37, coordinates_um=torch.randn(37, 3), mean_response=torch.rand(37)
    )
    encoder = MODELS[family](**SMALL[family]).build([spec], (11, 14))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    encoder.train(training)
    sizes = {"window": (3, 4, 3), "shift": (1, 2, 1)}
    plain = PlainV1FM(encoder, **sizes) if family == "v1fm" else STRAIGHTFORWARD[family](encoder)
    clip = (torch.randn(2, 1, 8, 11, 14), torch.randn(2, 2, 8), torch.randn(2, 2, 8))
    outputs, gradients = [], []
    for model in (encoder, plain):
        encoder.zero_grad()
        # The noise on positions, which both draw for frames, then neurons.
        torch.manual_seed(1)
        predicted = model(*clip, session="mouse")
        predicted.square().mean().backward()
        outputs.append(predicted.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    assert outputs[0].std() > 0
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    scale = gradients[1].abs().max()
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, rtol=1e-2, atol=1e-4)
