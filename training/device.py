"""Where and how a run computes: device, precision, determinism, memory."""

import os
import resource
import sys
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
        compile: compile the encoder with ``torch.compile``.
        deterministic: refuse operations whose result depends on timing.
        micro_batch: clips computed at once; None fits them into the free memory.
        memory_fraction: share of the free memory that one micro-batch may be predicted to take.
    """

    device: str = "auto"
    precision: Precision = "fp32"
    tf32: bool = True
    compile: bool = False
    deterministic: bool = False
    micro_batch: int | None = None
    memory_fraction: float = 0.8

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, but must be at least 1 (or none: automatic)"
            )
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(f"memory_fraction is {self.memory_fraction}, but must be in (0, 1]")


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


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory a run may still take on its device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the caching allocator holds but does not use is free to us.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - not a file of ours
        for line in file:
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _cgroup_free_bytes())
    return sys.maxsize


def _cgroup_free_bytes() -> int:
    # In a container the machine's free memory is not ours; both cgroup layouts name the limit and the use.
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit, encoding="ascii") as one, open(used, encoding="ascii") as two:  # noqa: PTH123
                return max(int(one.read()) - int(two.read()), 0)
        except (OSError, ValueError):
            continue
    return sys.maxsize


def peak_memory_bytes(device: torch.device) -> int:
    """Return the highest memory so far: of the device on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
