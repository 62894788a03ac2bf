"""Position encodings for tokens on a (step, patch) grid."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

PositionEncodingName = Literal["none", "learnable", "sinusoidal"]


def sinusoidal_encoding(num_positions: int, embedding_dim: int) -> Float[Tensor, "p d"]:
    """Return sines (even features) and cosines (odd features) of geometrically spaced frequencies.

    Feature ``2i`` of position ``p`` is ``sin(p / 10000^(2i / d))``, feature ``2i + 1`` the cosine.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    positions = torch.arange(num_positions, dtype=torch.float64)
    rates = 10000.0 ** (-torch.arange(0, embedding_dim, 2, dtype=torch.float64) / embedding_dim)
    angles = torch.outer(positions, rates)
    encoding = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return encoding[:, :embedding_dim].float()


class PositionEncoding(nn.Module):
    """Add a code of the time step and a code of the patch to each token.

    The learnable codes start from a standard normal distribution; the sinusoidal ones are fixed. Patches are
    counted row by row.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, Table 3 (the three choices; published: learnable).
    """

    spatial: Tensor
    temporal: Tensor

    def __init__(
        self, kind: PositionEncodingName, *, num_steps: int, num_patches: int, embedding_dim: int
    ) -> None:
        super().__init__()
        self.kind = kind
        if kind == "learnable":
            self.spatial = nn.Parameter(torch.randn(num_patches, embedding_dim))
            self.temporal = nn.Parameter(torch.randn(num_steps, embedding_dim))
        elif kind == "sinusoidal":
            self.register_buffer("spatial", sinusoidal_encoding(num_patches, embedding_dim), persistent=False)
            self.register_buffer("temporal", sinusoidal_encoding(num_steps, embedding_dim), persistent=False)

    def forward(self, tokens: Float[Tensor, "b t p d"]) -> Float[Tensor, "b t p d"]:
        """Add the codes; clips shorter than the longest use the first steps' codes."""
        if self.kind == "none":
            return tokens
        return tokens + self.spatial + self.temporal[: tokens.shape[1], None]
