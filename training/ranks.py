"""What the processes of one run tell each other. With one process every function is a no-op.

Gradients are summed, not averaged: every loss term is a sum over clips with scales taken from the global
batch, so the sum over processes is the gradient of the global batch.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among the processes of a run.

    Attributes:
        rank: number of this process.
        world_size: how many there are.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints, tracks and prints."""
        return self.rank == 0

    @classmethod
    def current(cls) -> "Ranks":
        """Read an initialized process group (of Ray Train or torchrun), or be alone."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        )


def start_torchrun() -> bool:
    """Join the process group that ``torchrun`` describes in the environment; False without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return True


def sum_gradients(
    shared: Iterable[nn.Parameter],
    by_session: Sequence[Sequence[nn.Parameter]],
    *,
    ranks: Ranks,
) -> None:
    """Sum gradients over the processes, in place.

    Only sessions that some process touched in this step are sent: with ten mice and one mouse per step that
    is a tenth of the readouts.

    Args:
        shared: parameters every step touches.
        by_session: parameters of each session, in the same order in every process.
        ranks: this process among the others.
    """
    if ranks.world_size == 1:
        return
    sessions = [list(parameters) for parameters in by_session]
    core = list(shared)
    device = core[0].device
    touched = torch.tensor(
        [any(parameter.grad is not None for parameter in session) for session in sessions],
        dtype=torch.int32,
        device=device,
    )
    dist.all_reduce(touched, op=dist.ReduceOp.MAX)
    parameters = core + [
        parameter
        for session, used in zip(sessions, touched.tolist(), strict=True)
        if used
        for parameter in session
    ]
    for bucket in _buckets(parameters):
        _sum_bucket(bucket)


def _buckets(
    parameters: Sequence[nn.Parameter], *, max_numel: int = 16_000_000
) -> Iterable[list[nn.Parameter]]:
    # Few large messages: latency of one collective is worth about a million numbers.
    bucket: list[nn.Parameter] = []
    numel = 0
    for parameter in parameters:
        if bucket and (numel + parameter.numel() > max_numel or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, numel = [], 0
        bucket.append(parameter)
        numel += parameter.numel()
    if bucket:
        yield bucket


def _sum_bucket(parameters: Sequence[nn.Parameter]) -> None:
    flat = torch.cat(
        [
            torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            if parameter.grad is None
            else parameter.grad.reshape(-1)
            for parameter in parameters
        ]
    )
    dist.all_reduce(flat)
    start = 0
    for parameter in parameters:
        stop = start + parameter.numel()
        parameter.grad = flat[start:stop].view_as(parameter)
        start = stop


def is_any(value: bool, *, ranks: Ranks, device: torch.device) -> bool:
    """Return whether ``value`` is true in some process."""
    if ranks.world_size == 1:
        return value
    flag = torch.tensor([value], dtype=torch.int32, device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def sum_over_ranks(values: Float[Tensor, " k"], *, ranks: Ranks) -> Float[Tensor, " k"]:
    """Return the sum of ``values`` over the processes."""
    if ranks.world_size > 1:
        dist.all_reduce(values)
    return values


def copy_from_first(tensors: Iterable[Shaped[Tensor, "..."]], *, ranks: Ranks) -> None:
    """Overwrite tensors with those of the first process, in place."""
    if ranks.world_size > 1:
        for tensor in tensors:
            # Detached: parameters are overwritten, not computed from each other.
            dist.broadcast(tensor.detach(), src=0)


def from_first(value: Value, *, ranks: Ranks) -> Value:
    """Return the first process's ``value`` in every process."""
    if ranks.world_size == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    received: Value = box[0]
    return received


def leave_processes() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
