"""Work to be measured: models, clips and functions with or without gradients, at published sizes."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.encoder import Encoder, SessionSpec
from models.registry import make_model

Work = Callable[[], Tensor | tuple[Tensor, ...]]

NUM_NEURONS = 7863
FRAME_SHAPE = (36, 64)


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def make_encoder(family: str, *, num_sessions: int = 1, training: bool = False) -> Encoder:
    specs = [
        SessionSpec(
            session=f"mouse{index}",
            num_neurons=NUM_NEURONS,
            coordinates_um=torch.randn(NUM_NEURONS, 3),
            mean_response=torch.rand(NUM_NEURONS),
        )
        for index in range(num_sessions)
    ]
    return make_model(family).build(specs, FRAME_SHAPE).train(training)


def make_clip(num_clips: int, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(num_clips, 1, num_frames, *FRAME_SHAPE),
        torch.randn(num_clips, 2, num_frames),
        torch.randn(num_clips, 2, num_frames),
    )


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> Work:
    """Return work that computes, and goes back to the inputs.

    The mean of squares would not do as a loss: after a batch norm it is a constant.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def work() -> tuple[Tensor, ...]:
        result = function(*leaves)
        return result.detach(), *torch.autograd.grad(result.sin().mean(), leaves)

    return work


def without_gradients(function: Callable[[], Tensor]) -> Work:
    def work() -> Tensor:
        with torch.no_grad():
            return function()

    return work
