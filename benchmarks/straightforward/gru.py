# ruff: noqa: ARG002 - every part is offered all signals, as in the encoder
"""The GRU baseline with direct convolutions, six of them per frame in the recurrence."""

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.straightforward.shared import PlainGaussian, batch_norm, planes


class PlainGRU(PlainGaussian):
    """Equivariant layers, then a loop over the frames."""

    def features(self, video: Tensor, behavior: Tensor, pupil: Tensor) -> Tensor:
        """Run the layers on every frame and the recurrence over all."""
        core = self.encoder.core
        maps = planes(video, behavior).transpose(1, 2).flatten(0, 1)
        for index, layer in enumerate(core.layers):
            maps = functional.conv2d(
                functional.elu(maps) if index else maps, layer.kernels(), padding=layer.padding
            )
            frames = maps.shape[0]
            alike = maps.unflatten(1, (layer.num_rotations, -1)).flatten(0, 1)
            maps = batch_norm(alike, layer.norm).unflatten(0, (frames, layer.num_rotations)).flatten(1, 2)
        return self._recurrence(maps.unflatten(0, (len(video), -1)))

    def _recurrence(self, maps: Tensor) -> Tensor:
        gru = self.encoder.core.gru
        of_input = list(zip(gru.input.weight.chunk(3), gru.input.bias.chunk(3), strict=True))
        gates = gru.update_and_reset
        of_state = list(zip(gates.weight.chunk(2), gates.bias.chunk(2), strict=True))
        of_state.append((gru.candidate.weight, gru.candidate.bias))

        def convolve(x: Tensor, kernel: tuple[Tensor, Tensor]) -> Tensor:
            return functional.conv2d(x, *kernel, padding=kernel[0].shape[-1] // 2)

        state = torch.zeros_like(maps[:, 0, :1]).expand(-1, gru.channels, -1, -1)
        states = []
        for x in maps.unbind(dim=1):
            update = torch.sigmoid(convolve(x, of_input[0]) + convolve(state, of_state[0]))
            reset = torch.sigmoid(convolve(x, of_input[1]) + convolve(state, of_state[1]))
            proposal = torch.tanh(convolve(x, of_input[2]) + convolve(reset * state, of_state[2]))
            state = (1 - update) * state + update * proposal
            states.append(state)
        return torch.stack(states, dim=2)
