"""Several readouts of each session on one core, trained together: an ensemble for the price of one core."""

from collections.abc import Sequence

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from models.encoder import Encoder, Readout


class HeadsReadout(Readout):
    """Readouts side by side; clips of the first head come first in the result, then those of the second.

    Args:
        heads: readouts of the same session.
    """

    def __init__(self, heads: Sequence[Readout]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(
        self,
        features: Float[Tensor, "b d t h w"],
        *,
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
        shift: Float[Tensor, "b t 2"] | None,
    ) -> Float[Tensor, "k_b n t"]:
        """Read every clip once with each head."""
        return torch.cat(
            [head(features, behavior=behavior, pupil=pupil, shift=shift) for head in self.heads], dim=0
        )


class HeadsEncoder(Encoder):
    """An encoder whose prediction is the mean of its heads' rates."""

    def read(
        self,
        features: Float[Tensor, "b d t_out h_out w_out"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
        *,
        session: str,
    ) -> Float[Tensor, "b n t_out"]:
        """Predict one session's responses from features: the mean over heads."""
        rates = self._rates(features, behavior, pupil, session=session)
        return reduce(rates, "(k b) n t -> b n t", "mean", b=len(features))

    def rates_by_head(
        self,
        video: Float[Tensor, "b 1 t h w"],
        behavior: Float[Tensor, "b 2 t"],
        pupil: Float[Tensor, "b 2 t"],
        *,
        session: str,
    ) -> Float[Tensor, "k b n t_out"]:
        """Predict with each head alone; the loss is the mean of the heads' losses."""
        features = self.features(video, behavior, pupil)
        rates = self._rates(features, behavior, pupil, session=session)
        return rearrange(rates, "(k b) n t -> k b n t", b=len(video))


def head_state(state: dict[str, Tensor], head: int) -> dict[str, Tensor]:
    """Return the parameters of the encoder that consists of the core and one head.

    Args:
        state: of a ``HeadsEncoder``.
        head: number of the head.
    """
    kept = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] != "readouts":
            kept[name] = tensor
        elif parts[2:4] == ["heads", str(head)]:
            kept[".".join([*parts[:2], *parts[4:]])] = tensor
    return kept
