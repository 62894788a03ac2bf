"""Predicted cost of ten configurations of each family beside what they really take on this machine.

    python benchmarks/cost.py                      # all families, ten minutes
    python benchmarks/cost.py --family vivit       # one family
    python benchmarks/cost.py --family vivit --configs 2

Every configuration is run in a process of its own: once on a short clip, because the code of the libraries
that a first step brings into memory (up to 20 MiB) is not the model's, and then a model made anew takes one
step. Measured memory is the most that the process held in that step less what it held before the model was
made. Freed memory goes back to the system at once (MALLOC_MMAP_THRESHOLD_), because what an allocator keeps
for later says nothing about the model. Operations are counted by torch's own counter. The rows, printed as
they come, are Markdown; the run fails when parameters differ, operations by more than 2 % or memory by more
than a quarter.
"""

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# This folder is first on the path of a script, and models.py in it would be found in place of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count  # noqa: E402

from models.cost import DTYPES, estimate_cost  # noqa: E402
from models.encoder import Encoder, SessionSpec  # noqa: E402
from models.registry import MODELS, make_model  # noqa: E402

NUM_NEURONS = 4000
MEBIBYTE = 2**20
FLASH_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

RESET_HIGH_WATER_MARK = "5"
"""What Linux wants to read in a process's ``clear_refs``."""

RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

CLIPS = {
    "factorized": (2, 60, 36, 64),
    "gru": (1, 20, 36, 64),
    "vivit": (1, 48, 36, 64),
    "v1fm": (1, 30, 36, 64),
    "dwiseneuro": (1, 16, 36, 64),
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


HEADER = ("family", "changes", "mode", "GFLOP", "counted", "ratio", "MiB", "measured", "ratio")
LARGEST_FLOP_ERROR, LARGEST_MEMORY_ERROR = 0.02, 0.25


def main() -> int:
    """Measure in processes and print the rows, or (inside of such a process) measure one configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=list(MODELS), action="append", help="default: all")
    parser.add_argument("--configs", type=int, default=10, help="configurations of each family")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        sys.stdout.write(json.dumps(measure(**json.loads(args.measure))))
        return 0
    write(HEADER)
    write(["---"] * len(HEADER))
    wrong = 0
    for family in args.family or MODELS:
        for case in cases(family)[: args.configs]:
            cells, is_right = row(case)
            write(cells)
            wrong += not is_right
    return min(wrong, 1)


def write(cells: Iterable[str]) -> None:
    """Print one row."""
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


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


def row(case: dict[str, Any]) -> tuple[list[str], bool]:
    """Predict and measure one case; say also whether the prediction is good enough."""
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
    counted = counted_flops(config, clips(case["family"]), training=case["training"])
    flops, memory_ratio = predicted.flops / counted, predicted.peak_bytes / measured["peak_bytes"]
    cells = [
        case["family"],
        ", ".join(f"{name}={value}" for name, value in case["changes"].items()) or "published",
        f"{'training' if case['training'] else 'prediction'}, {case['dtype']}",
        f"{predicted.flops / 1e9:.2f}",
        f"{counted / 1e9:.2f}",
        f"{flops:.3f}",
        f"{predicted.peak_bytes / MEBIBYTE:.0f}",
        f"{measured['peak_bytes'] / MEBIBYTE:.0f}",
        f"{memory_ratio:.2f}",
    ]
    return cells, abs(flops - 1) <= LARGEST_FLOP_ERROR and abs(memory_ratio - 1) <= LARGEST_MEMORY_ERROR


def counted_flops(config: Any, clip_shape: tuple[int, int, int, int], *, training: bool) -> int:
    """Return what torch's counter makes of a forward pass, which needs shapes only."""
    with torch.device("meta"):
        encoder = config.build([spec()], clip_shape[2:]).train(training)
    # Only torch's plain attention is known to its counter on a CPU.
    with FakeTensorMode(), torch.set_grad_enabled(training), sdpa_kernel(SDPBackend.MATH):
        encoder._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        inputs = make_clips(clip_shape)
        with FlopCounterMode(display=False, custom_mapping={FLASH_ATTENTION: flash_flops}) as counter:
            encoder(*inputs, session="mouse")
    return int(counter.get_total_flops())


def flash_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], **_: Any) -> int:
    """Return the operations of an attention kernel that a model calls by its name, by torch's formula."""
    return int(sdpa_flop_count(query, key, value))


def configure(family: str, changes: dict[str, Any]) -> Any:
    """Return the published configuration with changes; lists are what JSON made of tuples."""
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return dataclasses.replace(make_model(family), **tuples)  # type: ignore[type-var]


def clips(family: str) -> tuple[int, int, int, int]:
    """Return the shape of the clips a family is measured with."""
    return CLIPS.get(family, CLIPS["factorized"])


def measure(family: str, changes: dict[str, Any], *, training: bool, dtype: str) -> dict[str, int]:
    """Build one configuration and take a step; return parameters and peak bytes."""
    config, clip_shape = configure(family, changes), clips(family)
    # Two frames to predict: one would leave nothing to normalize.
    shortest = getattr(config, "clip_frames", config.warmup_frames + 2)
    run(config, (1, shortest, *clip_shape[2:]), training=training, dtype=dtype)
    gc.collect()
    Path("/proc/self/clear_refs").write_text(RESET_HIGH_WATER_MARK)
    before = memory("VmRSS")
    parameters = run(config, clip_shape, training=training, dtype=dtype)
    return {"parameters": parameters, "peak_bytes": memory("VmHWM") - before}


def run(config: Any, clip_shape: tuple[int, int, int, int], *, training: bool, dtype: str) -> int:
    """Build a model and take a step; return how many parameters it has."""
    encoder = config.build([spec()], clip_shape[2:]).train(training)
    inputs = make_clips(clip_shape)
    optimizer = torch.optim.AdamW(encoder.parameters()) if training else None
    if optimizer is not None:
        prepare(optimizer)
    step(encoder, inputs, optimizer=optimizer, dtype=dtype)
    return sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)


def spec() -> SessionSpec:
    """Return the one session."""
    return SessionSpec(
        session="mouse",
        num_neurons=NUM_NEURONS,
        coordinates_um=100 * torch.randn(NUM_NEURONS, 3),
        mean_response=torch.ones(NUM_NEURONS),
    )


def make_clips(shape: tuple[int, int, int, int]) -> tuple[torch.Tensor, ...]:
    """Return video, behavior and pupil."""
    num_clips, num_frames, height, width = shape
    return (
        torch.randn(num_clips, 1, num_frames, height, width),
        torch.randn(num_clips, 2, num_frames),
        torch.randn(num_clips, 2, num_frames),
    )


def prepare(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer make its moments, which the first real step would make after its peak."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


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
    sys.exit(main())
