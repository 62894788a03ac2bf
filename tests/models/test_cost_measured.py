"""Predicted memory beside what the system says a process really held."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Small models on clips that are large for them, so that what the libraries hold (10 to 20 MiB) hardly counts.
MEASURE = textwrap.dedent(
    """
    import json
    from pathlib import Path

    import torch

    from models.cores.dwiseneuro import DwiseNeuroConfig
    from models.cores.factorized import FactorizedConfig
    from models.cores.gru import GRUConfig
    from models.cores.v1fm import V1FMConfig
    from models.cores.vivit import ViViTConfig
    from models.cost import estimate_cost
    from models.encoder import SessionSpec

    CASES = {
        "factorized": (FactorizedConfig(channels=(8, 8), input_spatial_kernel=5), (4, 60, 36, 64)),
        "gru": (GRUConfig(num_layers=2, features=2, gru_channels=8), (2, 30, 36, 64)),
        "vivit": (
            ViViTConfig(
                embedding_dim=16, spatial_depth=2, temporal_depth=1, num_heads=2, head_dim=16, ff_dim=32
            ),
            (2, 60, 36, 64),
        ),
        "v1fm": (V1FMConfig(channels=32, depth=2, mlp_channels=64), (2, 30, 36, 64)),
        "dwiseneuro": (
            DwiseNeuroConfig(stem_channels=16, channels=(16, 32), strides=(2, 2), cortex_channels=(64, 128)),
            (2, 16, 36, 64),
        ),
    }
    SHORT = {"factorized": 17, "gru": 2, "vivit": 26, "v1fm": 30, "dwiseneuro": 2}
    NUM_NEURONS = 500
    SPEC = SessionSpec(
        session="mouse",
        num_neurons=NUM_NEURONS,
        coordinates_um=100 * torch.randn(NUM_NEURONS, 3),
        mean_response=torch.ones(NUM_NEURONS),
    )


    def held(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


    def run(config, clip_shape, *, training):
        num_clips, num_frames = clip_shape[:2]
        encoder = config.build([SPEC], clip_shape[2:]).train(training)
        clip = (
            torch.randn(num_clips, 1, *clip_shape[1:]),
            torch.randn(num_clips, 2, num_frames),
            torch.randn(num_clips, 2, num_frames),
        )
        optimizer = torch.optim.AdamW(encoder.parameters()) if training else None
        with torch.set_grad_enabled(training):
            predicted = encoder(*clip, session="mouse")
            loss = (predicted - torch.log(predicted + 1e-8)).sum() + encoder.regularizer()
        if optimizer is not None:
            loss.backward()
            optimizer.step()


    torch.set_num_threads(1)
    answers = []
    for family, (config, clip_shape) in CASES.items():
        for training in (True, False):
            # Once for what the libraries load on first use.
            run(config, (1, SHORT[family], *clip_shape[2:]), training=training)
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
            before = held("VmRSS")
            run(config, clip_shape, training=training)
            measured = held("VmHWM") - before
            predicted = estimate_cost(config, {"mouse": NUM_NEURONS}, clip_shape, training=training)
            answers.append([family, training, predicted.peak_bytes, measured])
    print(json.dumps(answers))
    """
)
EVERY = [
    (family, training)
    for family in ("factorized", "gru", "vivit", "v1fm", "dwiseneuro")
    for training in (True, False)
]


@pytest.fixture(scope="module")
def ratios():
    """Predicted over measured peak of each family, in training and prediction, in one fresh process."""
    # What an allocator keeps for later says nothing about the model: freed memory goes back at once.
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        cwd=ROOT,
        env=os.environ | at_once,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    return {
        (family, training): predicted / measured
        for family, training, predicted, measured in json.loads(done.stdout)
    }


@pytest.mark.timeout(180)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the high-water mark")
@pytest.mark.parametrize(("family", "training"), EVERY)
def test_the_predicted_peak_is_close_to_the_measured_one(ratios, family, training):
    # On the machine this was written on: 0.95 to 1.03.
    assert 0.8 <= ratios[family, training] <= 1.2
