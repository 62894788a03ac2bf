"""Follow the eye: from the pupil's center to a shift of every neuron's position."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Shifter(nn.Module):
    """Three small layers from the pupil's center to a shift of the readout positions.

    Linear layers keep torch's initialization: the references' own initialization never runs.

    Args:
        hidden: width of the two hidden layers; 5 in the baselines and ViV1T, 16 in V1FM.

    Source:
        Sensorium 2023 starter kit, MLP shifter.
    """

    def __init__(self, hidden: int = 5) -> None:
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden width of the shifter is {hidden}, but must be at least 1")
        self.layers = nn.Sequential(
            nn.Linear(2, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 2),
            nn.Tanh(),
        )

    def forward(self, pupil: Float[Tensor, "b 2 t"]) -> Float[Tensor, "b t 2"]:
        """Return the shift of each frame, in half widths and half heights of the feature map."""
        # Half precision would move a position by a twentieth of a pixel; these layers cost nothing.
        with torch.autocast(pupil.device.type, enabled=False):
            shift: Tensor = self.layers(rearrange(pupil.float(), "b pupil t -> b t pupil"))
        return shift
