"""A gated recurrent unit whose products with matrices are convolutions of maps."""

from itertools import chain
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.alike import alike
from models.fourier import FourierPlan, adjoint_kernels, conv2d, prefers_fourier


class ConvGRU(nn.Module):
    """Run over the frames of clips, from a state of zeros.

    With update gate z, reset gate r and candidate c: ``z = sigmoid(Wz x + Uz h)``, ``r`` likewise,
    ``c = tanh(Wc x + Uc (r h))`` and the new state is ``(1 - z) h + z c``; all W and U are convolutions
    with bias. The gates' kernels are kept side by side, so one convolution serves several gates.

    Args:
        in_channels: channels of the input.
        channels: channels of the state.
        input_kernel: rows and columns of the kernels on the input; odd.
        recurrent_kernel: rows and columns of the kernels on the state; odd.

    Source:
        Sensorium 2023 starter kit, convolutional GRU; Turishcheva et al. 2024, arXiv:2407.09100.
    """

    def __init__(self, in_channels: int, channels: int, *, input_kernel: int, recurrent_kernel: int) -> None:
        super().__init__()
        self.channels = channels
        self.input = nn.Conv2d(in_channels, 3 * channels, input_kernel)
        self.update_and_reset = nn.Conv2d(channels, 2 * channels, recurrent_kernel)
        self.candidate = nn.Conv2d(channels, channels, recurrent_kernel)
        for convolution in (self.input, self.update_and_reset, self.candidate):
            # Each gate is a convolution of its own where the spread of its kernels is concerned.
            for kernels in convolution.weight.data.split(channels):
                nn.init.xavier_normal_(kernels)
            nn.init.zeros_(_bias(convolution))

    def forward(self, maps: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        """Return the state after each frame."""
        num_clips = len(maps)
        frames = rearrange(maps, "b c t h w -> (t b) c h w")
        # What the gates make of the input does not depend on the state: all frames at once.
        gates = conv2d(frames, self.input.weight, padding=self.input.kernel_size[0] // 2)
        gates = gates + rearrange(self._biases(), "d -> d 1 1")
        steps = rearrange(gates, "(t b) d h w -> t b d h w", b=num_clips)
        recurrent = (self.update_and_reset.weight, self.candidate.weight)
        if prefers_fourier(maps.device, recurrent[0].shape[-1]):
            states: Tensor = _FourierRecurrence.apply(steps.float(), *recurrent)
        else:
            states = _recurrence(steps, *recurrent)
        return rearrange(states, "t b d h w -> b d t h w")

    def _biases(self) -> Float[Tensor, " d3"]:
        """Return each gate's bias; those of input and state are only ever added."""
        recurrent = torch.cat([_bias(self.update_and_reset), _bias(self.candidate)])
        return _bias(self.input) + recurrent


def _bias(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None
    return convolution.bias


def _recurrence(
    steps: Float[Tensor, "t b d3 h w"],
    update_and_reset: Float[Tensor, "d2 d k k"],
    candidate: Float[Tensor, "d d k k"],
) -> Float[Tensor, "t b d h w"]:
    """Run the recurrence with direct convolutions."""
    channels, padding = len(candidate), candidate.shape[-1] // 2
    state = torch.zeros_like(steps[0, :, :channels])
    states = []
    for step in steps:
        gates, proposal = step.split([2 * channels, channels], dim=1)
        gates = gates + functional.conv2d(state, update_and_reset, padding=padding)
        update, reset = torch.sigmoid(gates).chunk(2, dim=1)
        proposal = torch.tanh(proposal + functional.conv2d(reset * state, candidate, padding=padding))
        state = state + update * (proposal - state)
        states.append(state)
    return torch.stack(states)


class _FourierRecurrence(torch.autograd.Function):
    """The recurrence with convolutions by Fourier transform, and its gradient back through time.

    Written out, because a gradient of the kernels per frame, which is what autograd would add up, costs
    as much as the gradient of all frames at once.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        steps: Float[Tensor, "t b d3 h w"],
        update_and_reset: Float[Tensor, "d2 d k k"],
        candidate: Float[Tensor, "d d k k"],
    ) -> Float[Tensor, "t b d h w"]:
        channels = len(candidate)
        plan = FourierPlan(
            in_shape=(steps.shape[3], steps.shape[4]),
            kernel=candidate.shape[-1],
            padding=candidate.shape[-1] // 2,
        )
        gate_spectra = plan.kernel_spectra(update_and_reset.to(steps.dtype))
        candidate_spectra = plan.kernel_spectra(candidate.to(steps.dtype))
        activations = steps.clone()
        states = torch.empty_like(steps[:, :, :channels])
        for now in chain([0], alike(range(1, len(activations)))):
            gates, proposal = activations[now].split([2 * channels, channels], dim=1)
            # The first state is zero, and so is its convolution.
            before = states[now - 1] if now else torch.zeros_like(states[0])
            if now:
                gates += _convolved(plan, before, gate_spectra)
            update, reset = gates.sigmoid_().chunk(2, dim=1)
            if now:
                proposal += _convolved(plan, reset * before, candidate_spectra)
            torch.lerp(before, proposal.tanh_(), update, out=states[now])
        ctx.plan = plan
        ctx.save_for_backward(activations, states, update_and_reset, candidate)
        return states

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        activations, states, update_and_reset, candidate = ctx.saved_tensors
        plan, channels = ctx.plan, len(candidate)
        dtype = activations.dtype
        gate_spectra = plan.kernel_spectra(adjoint_kernels(update_and_reset.to(dtype)))
        candidate_spectra = plan.kernel_spectra(adjoint_kernels(candidate.to(dtype)))
        grads = torch.empty_like(activations)
        carried = torch.zeros_like(states[0])
        for now in chain(alike(range(len(states) - 1, 0, -1)), [0]):
            update, reset, proposal = activations[now].split(channels, dim=1)
            before = states[now - 1] if now else torch.zeros_like(carried)
            grad = grad_outputs[0][now] + carried
            grad_update, grad_reset, grad_proposal = grads[now].split(channels, dim=1)
            torch.mul(grad * update, 1 - proposal.square(), out=grad_proposal)
            torch.mul(grad * (proposal - before), update * (1 - update), out=grad_update)
            grad_gated = _convolved(plan, grad_proposal, candidate_spectra)
            torch.mul(grad_gated * before, reset * (1 - reset), out=grad_reset)
            if now:
                carried = grad * (1 - update) + grad_gated * reset
                carried += _convolved(plan, grads[now, :, : 2 * channels], gate_spectra)
            del grad, grad_gated
        return grads, *_kernel_gradients(plan, activations, states, grads)


def _convolved(plan: FourierPlan, maps: Tensor, spectra: Tensor) -> Tensor:
    return plan.output(torch.bmm(plan.spectra(maps), spectra))


def _kernel_gradients(
    plan: FourierPlan,
    activations: Float[Tensor, "t b d3 h w"],
    states: Float[Tensor, "t b d h w"],
    grads: Float[Tensor, "t b d3 h w"],
) -> tuple[Float[Tensor, "d2 d k k"], Float[Tensor, "d d k k"]]:
    """Return the gradients of both kernels, over all frames at once."""
    channels = states.shape[2]
    # The first frame convolves a state of zeros.
    before = states[:-1].flatten(0, 1)
    reset = activations[1:, :, channels : 2 * channels].flatten(0, 1)
    later = grads[1:].flatten(0, 1)
    of_gates = plan.kernel_gradient(before, later[:, : 2 * channels])
    return of_gates, plan.kernel_gradient(reset * before, later[:, 2 * channels :])
