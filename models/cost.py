"""What a model costs before it exists: parameters, FLOPs and peak memory of a configuration.

No model is built: its modules are made without storage, which is quick and needs no memory, and its forward
(and backward) pass is traced on tensors that have a shape and no contents. Every operation reports its
result, and a result counts for as long as something refers to it: the trace allocates and frees what a real
run does, also under gradient checkpointing, in chunked kernels and in models that do not exist yet. Of loops
whose passes are alike, one pass is traced. Nothing is computed; a trace takes some tenths of a second.
"""

import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from models.alike import Shortening, shortened_loops
from models.encoder import Encoder, ModelConfig, SessionSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Precisions by name; bfloat16 is automatic mixed precision with float32 parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one configuration costs.

    Attributes:
        parameters: trainable parameters, all sessions together.
        flops: floating-point operations of one forward pass (a multiply-add is two) in convolutions, matrix
            products and attention, as torch's flop counter counts them.
        peak_bytes: most memory in use at a time: parameters, buffers, the clips and everything computed from
            them; in training also the gradients and the two moments of AdamW.
    """

    parameters: int
    flops: int
    peak_bytes: int


def estimate_cost(
    config: ModelConfig,
    sessions: Mapping[str, int],
    clip_shape: tuple[int, int, int, int],
    *,
    training: bool,
    dtype: str = "float32",
) -> Cost:
    """Return what a configuration costs, on a CPU, without building the model.

    Args:
        config: the configuration.
        sessions: number of neurons of each session; the clips are the session's that has most.
        clip_shape: clips of a batch, frames, rows, columns.
        training: cost of a training step (forward, backward, optimizer) instead of a prediction.
        dtype: ``"float32"``, or ``"bfloat16"`` for automatic mixed precision.

    Raises:
        ValueError: the configuration does not fit to the clips, or the precision is unknown.
    """
    encoder = build_without_storage(config, sessions, (clip_shape[2], clip_shape[3]))
    largest = max(sessions, key=lambda session: sessions[session])
    return trace(encoder.train(training), clip_shape, session=largest, dtype=dtype)


def trace(
    encoder: nn.Module, clip_shape: tuple[int, int, int, int], *, session: str, dtype: str = "float32"
) -> Cost:
    """Return what a step of a model without storage costs; of a training step if it is in that mode.

    Args:
        encoder: the model, or another one with an encoder's ``forward`` and ``regularizer``, on no device.
        clip_shape: clips of a batch, frames, rows, columns.
        session: whose clips they are.
        dtype: ``"float32"``, or ``"bfloat16"`` for automatic mixed precision.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}")
    parameters = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    with FakeTensorMode(), shortened_loops() as shortening:
        encoder._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        clips = _clips(clip_shape)
        counts = _Trace([*encoder.parameters(), *encoder.buffers(), *clips], shortening)
        with counts:
            flops = _run(encoder, clips, session=session, dtype=dtype, counts=counts)
        # Gradients of other sessions' readouts come from other clips, but share the step.
        missing = [p for p in encoder.parameters() if p.requires_grad and p.grad is None]
        optimizer = 8 * parameters + 4 * sum(p.numel() for p in missing) if encoder.training else 0
    return Cost(parameters=parameters, flops=flops, peak_bytes=counts.peak_bytes + optimizer)


def build_without_storage(
    config: ModelConfig, sessions: Mapping[str, int], frame_shape: tuple[int, int]
) -> Encoder:
    """Return the modules of a model whose parameters have a shape and no contents."""
    with torch.device("meta"):
        specs = [
            SessionSpec(
                session=session,
                num_neurons=num_neurons,
                coordinates_um=torch.empty(num_neurons, 3),
                mean_response=torch.empty(num_neurons),
            )
            for session, num_neurons in sessions.items()
        ]
        return config.build(specs, frame_shape)


def _clips(clip_shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    num_clips, num_frames, height, width = clip_shape
    video = torch.empty(num_clips, 1, num_frames, height, width)
    return video, torch.empty(num_clips, 2, num_frames), torch.empty(num_clips, 2, num_frames)


def _run(encoder: Any, clips: Iterable[Tensor], *, session: str, dtype: str, counts: "_Trace") -> int:
    """Run one step as training does it, and return the FLOPs of its forward pass."""
    with torch.set_grad_enabled(encoder.training):
        with torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "float32"):
            predicted = encoder(*clips, session=session)
        flops = counts.flops
        if encoder.training:
            responses = torch.empty_like(predicted)
            loss = (predicted - responses * torch.log(predicted + 1e-8)).sum() + encoder.regularizer()
            torch.autograd.backward(loss)
    return int(flops)


class _Trace(TorchDispatchMode):
    """Count the bytes of all storages that are alive, and the FLOPs of every operation.

    Attributes:
        flops: floating-point operations so far.
        peak_bytes: most bytes alive at a time so far.
    """

    def __init__(self, existing: Iterable[Tensor], shortening: Shortening) -> None:
        super().__init__()
        self._shortening = shortening
        self._has_half_convolutions = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        self.flops = 0
        self.peak_bytes = 0
        self._bytes = 0
        self._alive: set[int] = set()
        for tensor in existing:
            self._see(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            # Asked for twice an operation by the tensors without contents themselves.
            return args[0].fake_device
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        hidden = _transform_bytes(func, args, result=result)
        if not self._has_half_convolutions:
            hidden += _columns_bytes(func, args, result=result)
        self.peak_bytes = max(self.peak_bytes, self._bytes + hidden)
        self.flops += round(self._shortening.times * _flops(func, args, kwargs, result=result))
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        self._bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, num_bytes: int) -> None:
        self._alive.discard(key)
        self._bytes -= num_bytes


def _transform_bytes(func: Any, args: tuple[Any, ...], *, result: Any) -> int:
    """Return what an inverse Fourier transform of several axes takes while its result is not there yet.

    It transforms all axes but the last into a copy, from another one in a different order.
    """
    if func.overloadpacket is not torch.ops.aten._fft_c2r or len(args[1]) < 2:
        return 0
    copies = 2 * int(args[0].numel()) * int(args[0].element_size())
    return max(copies - int(result.numel()) * int(result.element_size()), 0)


def _columns_bytes(func: Any, args: tuple[Any, ...], *, result: Any) -> int:
    """Return what a half-precision convolution takes on processors without one: each output's input patch."""
    packet = func.overloadpacket
    if packet is torch.ops.aten.convolution:
        out, maps, weight = result, *args[:2]
    elif packet is torch.ops.aten.convolution_backward:
        out, maps, weight = args[:3]
    else:
        return 0
    if maps.dtype == torch.float32 or math.prod(weight.shape[2:]) == 1:
        return 0
    num_outputs = int(out.numel()) // int(out.shape[1])
    return int(num_outputs * math.prod(weight.shape[1:]) * maps.element_size())


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, result: Any) -> int:
    packet = func.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        # Torch's counter knows this kernel only for other devices.
        return 4 * int(args[0].numel()) * int(args[1].shape[-2])
    return 0
