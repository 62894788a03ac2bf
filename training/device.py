"""Where and how a run computes: device, precision, determinism, memory."""

import os
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeConfig:
    """How a run computes; none of it changes what is computed beyond rounding.

    Attributes:
        device: "auto" takes the GPU of this process's rank when there is one.
        precision: autocast type; fp32 switches autocast off.
        tf32: let CUDA use TF32 in fp32 matrix products.
        compile: compile the encoder's core with ``torch.compile``.
        deterministic: refuse operations whose result depends on timing.
        micro_batch: clips computed at once, of a session (``loader.order`` round and cycle) or of all
            sessions (mixed); None takes as many as are predicted to fit into the free memory.
    """

    device: str = "auto"
    precision: Precision = "fp32"
    tf32: bool = True
    compile: bool = False
    deterministic: bool = False
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, but must be at least 1 (or none: automatic)"
            )


def resolve_device(name: str, *, local_rank: int = 0) -> torch.device:
    """Return the device a run computes on.

    Args:
        name: "auto", "cpu", "cuda" or "cuda:K".
        local_rank: number of this process on its machine; picks the GPU.

    Raises:
        ValueError: the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank % max(count, 1) if device.index is None else device.index
        if index >= count:
            raise ValueError(
                f"compute.device is {name!r}, but this machine has {count} CUDA devices; try cpu"
            )
        return torch.device("cuda", index)
    return device


@contextmanager
def configured(config: ComputeConfig) -> Iterator[None]:
    """Apply TF32 and determinism switches, and put them back afterwards."""
    matmul = torch.get_float32_matmul_precision()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if config.deterministic:
        # cuBLAS reads this when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(was_deterministic)


def autocast(config: ComputeConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of the configured precision."""
    if config.precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the highest memory so far: of the device on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
