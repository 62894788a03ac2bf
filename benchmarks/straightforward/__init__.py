"""The model families once more, as one would write them down first: torch's layers, nothing rearranged.

Each takes an encoder, uses its parameters and computes the same from them. They are what the benchmark
compares with and, being short, an independent check of the outputs.
"""

from collections.abc import Callable

from torch import nn

from benchmarks.straightforward.dwiseneuro import PlainDwiseNeuro
from benchmarks.straightforward.factorized import PlainFactorized
from benchmarks.straightforward.gru import PlainGRU
from benchmarks.straightforward.v1fm import PlainV1FM
from benchmarks.straightforward.vivit import PlainViViT
from models.encoder import Encoder

STRAIGHTFORWARD: dict[str, Callable[[Encoder], nn.Module]] = {
    "dwiseneuro": PlainDwiseNeuro,
    "factorized": PlainFactorized,
    "gru": PlainGRU,
    "v1fm": PlainV1FM,
    "vivit": PlainViViT,
}
