"""Predicted cost of ten configurations of each family beside what they really take on this machine.

    python benchmarks/cost.py                      # all families, half an hour
    python benchmarks/cost.py --family vivit       # one family
    python benchmarks/cost.py --family vivit --configs 2

Every configuration takes two steps in a process of its own. Measured memory is the process's high-water mark
less what it held before the model was built; freed memory goes back to the system at once
(MALLOC_MMAP_THRESHOLD_), because what an allocator keeps for later says nothing about the model.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# This folder is first on the path of a script, and models.py in it would be found in place of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from models.cost import DTYPES, estimate_cost  # noqa: E402
from models.encoder import Encoder, SessionSpec  # noqa: E402
from models.registry import MODELS, make_model  # noqa: E402

NUM_NEURONS = 4000
MEBIBYTE = 2**20
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

CLIPS = {
    "factorized": (4, 60, 36, 64),
    "gru": (2, 24, 36, 64),
    "vivit": (2, 60, 36, 64),
    "v1fm": (4, 30, 36, 64),
    "dwiseneuro": (2, 16, 36, 64),
}
"""Clips, frames, rows and columns; a family that is not here gets the first one."""

VARIATIONS: dict[str, list[dict[str, Any]]] = {
    "factorized": [
        {},
        {"channels": (16, 32, 64)},
        {"channels": (32, 64)},
        {"channels": (32, 32, 32, 32)},
        {"hidden_spatial_kernel": 3},
        {"input_spatial_kernel": 7, "hidden_temporal_kernel": 7},
    ],
    "gru": [{}, {"gru_channels": 32}, {"num_layers": 2}, {"features": 4}, {"gru_recurrent_kernel": 5}],
    "vivit": [
        {},
        {"checkpointing": True},
        {"block": "sequential"},
        {"qk_norm": True, "ff_activation": "swiglu"},
        {"num_heads": 4, "ff_dim": 512},
        {"spatial_patch_size": 16, "spatial_patch_stride": 4},
    ],
    "v1fm": [
        {},
        {"checkpointing": True},
        {"fusion": "adaptive", "levels": (2, 4)},
        {"levels": ()},
        {"channels": 112, "mlp_channels": 244},
        {"depth": 6},
    ],
    "dwiseneuro": [
        {},
        {"expansion": 6},
        {"expansion": 3},
        {"cortex_channels": (512, 1024)},
        {"spatial_kernel": 5},
    ],
}
"""Changes to the published settings; each runs in training, then again as the modes below go round."""

MODES = [(True, "float32"), (False, "float32"), (True, "bfloat16"), (False, "bfloat16")]


def main() -> None:
    """Measure in processes and print the table, or (inside of such a process) measure one configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=list(MODELS), action="append", help="default: all")
    parser.add_argument("--configs", type=int, default=10, help="configurations of each family")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        sys.stdout.write(json.dumps(measure(**json.loads(args.measure))))
        return
    table = Table("family", "changes", "mode", "GFLOP", "counted", "MiB", "measured", "predicted / measured")
    for family in args.family or MODELS:
        for case in cases(family)[: args.configs]:
            table.add_row(*row(case))
    Console(width=160).print(table)


def cases(family: str) -> list[dict[str, Any]]:
    """Return ten cases: the family's variations, with the modes going round."""
    variations = VARIATIONS.get(family, [{}])
    return [
        {
            "family": family,
            "changes": variations[index % len(variations)],
            "training": MODES[(index + index // len(variations)) % len(MODES)][0],
            "dtype": MODES[(index + index // len(variations)) % len(MODES)][1],
        }
        for index in range(10)
    ]


def row(case: dict[str, Any]) -> list[str]:
    """Predict and measure one case."""
    config = configure(case["family"], case["changes"])
    predicted = estimate_cost(
        config, {"mouse": NUM_NEURONS}, clips(case["family"]), training=case["training"], dtype=case["dtype"]
    )
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", json.dumps(case)]
    answer = subprocess.run(command, env=os.environ | RETURN_AT_ONCE, check=True, stdout=subprocess.PIPE)
    measured = json.loads(answer.stdout.splitlines()[-1])
    if measured["parameters"] != predicted.parameters:
        raise ValueError(
            f"{case}: predicted {predicted.parameters} parameters, found {measured['parameters']}"
        )
    ratio = predicted.peak_bytes / measured["peak_bytes"]
    return [
        case["family"],
        ", ".join(f"{name}={value}" for name, value in case["changes"].items()) or "published",
        f"{'training' if case['training'] else 'prediction'}, {case['dtype']}",
        f"{predicted.flops / 1e9:.2f}",
        f"{measured['flops'] / 1e9:.2f}",
        f"{predicted.peak_bytes / MEBIBYTE:.0f}",
        f"{measured['peak_bytes'] / MEBIBYTE:.0f}",
        f"{ratio:.2f}" if 0.75 <= ratio <= 1.25 else f"[bold red]{ratio:.2f}",
    ]


def configure(family: str, changes: dict[str, Any]) -> Any:
    """Return the published configuration with changes; lists are what JSON made of tuples."""
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return dataclasses.replace(make_model(family), **tuples)  # type: ignore[type-var]


def clips(family: str) -> tuple[int, int, int, int]:
    """Return the shape of the clips a family is measured with."""
    return CLIPS.get(family, CLIPS["factorized"])


def measure(family: str, changes: dict[str, Any], *, training: bool, dtype: str) -> dict[str, int]:
    """Build one configuration and take two steps; return parameters, counted FLOPs and peak bytes."""
    num_clips, num_frames, height, width = clips(family)
    warm_up(torch.float32 if dtype == "float32" else torch.bfloat16)
    before = memory("VmRSS")
    torch.manual_seed(0)
    spec = SessionSpec(
        session="mouse",
        num_neurons=NUM_NEURONS,
        coordinates_um=100 * torch.randn(NUM_NEURONS, 3),
        mean_response=torch.ones(NUM_NEURONS),
    )
    encoder = configure(family, changes).build([spec], (height, width)).train(training)
    inputs = (
        torch.randn(num_clips, 1, num_frames, height, width),
        torch.randn(num_clips, 2, num_frames),
        torch.randn(num_clips, 2, num_frames),
    )
    optimizer = torch.optim.AdamW(encoder.parameters()) if training else None
    for _ in range(2):
        step(encoder, inputs, optimizer=optimizer, dtype=dtype)
    peak = memory("VmHWM") - before
    # Only torch's plain attention is known to its counter on a CPU.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        encoder(*inputs, session="mouse")
    parameters = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    return {"parameters": parameters, "flops": counter.get_total_flops(), "peak_bytes": peak}


def warm_up(dtype: torch.dtype) -> None:
    """Load the libraries that the first product, convolution and gradient of a process load."""
    image = torch.randn(1, 4, 8, 8, dtype=dtype, requires_grad=True)
    torch.nn.functional.conv2d(image, torch.randn(4, 4, 3, 3, dtype=dtype)).flatten(2).softmax(
        -1
    ).sum().backward()
    torch.optim.AdamW([torch.ones(1)])


def step(
    encoder: Encoder, inputs: tuple[torch.Tensor, ...], *, optimizer: torch.optim.Optimizer | None, dtype: str
) -> None:
    """Train on the clips, or predict them."""
    half = torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "float32")
    with half, torch.set_grad_enabled(optimizer is not None):
        predicted = encoder(*inputs, session="mouse")
        loss = (predicted - torch.log(predicted + 1e-8)).sum() + encoder.regularizer()
    if optimizer is not None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def memory(field: str) -> int:
    """Return a line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
    main()
