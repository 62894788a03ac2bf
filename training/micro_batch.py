"""How many clips are computed at once: predicted from the free memory, halved when it runs out after all."""

import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.cost import estimate_cost
from training.spec import RunSpec

logger = logging.getLogger(__name__)

_USABLE = 0.8
"""Share of the free memory that a step may be predicted to take."""

_MOST_PER_VIDEO = 10_000
"""No published model takes this many times the memory of its clips' videos."""

_WORDS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


class SharedOutOfMemoryError(RuntimeError):
    """Some process of the run is out of memory; raised in all of them at the same point."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory, of the device or of the machine, did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | SharedOutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def fitting_micro_batch(
    spec: RunSpec, num_neurons: Mapping[str, int], frame_shape: tuple[int, int], *, device: torch.device
) -> int:
    """Return how many clips may be computed at once; the whole batch where nothing can be predicted.

    Args:
        spec: the run; its ``compute.micro_batch`` is taken as it is.
        num_neurons: of each session.
        frame_shape: rows and columns of a video frame.
        device: whose free memory counts; processes on one machine share that of the CPU.
    """
    if spec.compute.micro_batch is not None:
        return spec.compute.micro_batch
    whole = spec.loader.batch_size
    usable = _USABLE * free_memory_bytes(device)
    video_bytes = 4 * whole * spec.loader.clip_frames * math.prod(frame_shape)
    if _MOST_PER_VIDEO * video_bytes < usable:
        # The prediction takes about a second, which a short run would notice.
        return whole
    try:
        needed = _predicted_bytes(spec, num_neurons, frame_shape, num_clips=whole)
        if needed <= usable:
            return whole
        one = _predicted_bytes(spec, num_neurons, frame_shape, num_clips=1)
    except Exception as error:
        # A model that cannot be traced can still be trained, and a step that does not fit is redone in parts.
        logger.warning("the memory of %s cannot be predicted: %s", spec.family, error)
        return whole
    # What a clip takes is the same for each; parameters and their moments come on top.
    per_clip = max((needed - one) / (whole - 1), 1.0) if whole > 1 else 1.0
    size = int(min(max(1 + (usable - one) / per_clip, 1), whole))
    logger.info(
        "a batch of %d clips is predicted to take %.1f GiB of %.1f GiB: %d are computed at once",
        whole,
        needed / 2**30,
        usable / 2**30,
        size,
    )
    return size


def warn_of_batch_norm(encoder: nn.Module, *, at_once: int, batch_size: int) -> None:
    """Say so when the size of micro-batches, or the number of processes, changes the result."""
    if at_once < batch_size and any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        logger.warning(
            "batch norm sees %d clips at a time, not the batch of %d: the result differs from that of one "
            "device with memory for all of them",
            at_once,
            batch_size,
        )


class Rewind:
    """The running statistics of a module's batch norms before a step, to redo the step exactly."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = list(_statistics(module))
        self._before = [buffer.clone() for buffer in self._buffers]

    def undo(self) -> None:
        """Put them back."""
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)


def _statistics(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            yield from part.buffers(recurse=False)


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory a process of a run may still take on its device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the caching allocator holds but does not use is free to us.
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    free = min(_available_bytes(), _cgroup_free_bytes())
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), sys.maxsize
    )


def _cgroup_free_bytes() -> int:
    # In a container the machine's free memory is not ours; both cgroup layouts name the limit and the use.
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return max(int(Path(limit).read_text()) - int(Path(used).read_text()), 0)
        except (OSError, ValueError):
            continue
    return sys.maxsize


def _predicted_bytes(
    spec: RunSpec, num_neurons: Mapping[str, int], frame_shape: tuple[int, int], *, num_clips: int
) -> int:
    clip_shape = (num_clips, spec.loader.clip_frames, *frame_shape)
    dtype = "float32" if spec.compute.precision == "fp32" else "bfloat16"
    return estimate_cost(spec.model, num_neurons, clip_shape, training=True, dtype=dtype).peak_bytes
