"""Transformer blocks: attention and feed-forward side by side (parallel) or one after the other."""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.drop_path import DropPath
from models.dropped_linear import DroppedLinear
from models.normed_attention import normed_attention
from models.normed_products import makes_again, normed_products

FeedForwardActivation = Literal["tanh", "sigmoid", "elu", "gelu", "swiglu"]
BlockName = Literal["parallel", "sequential"]


class SwiGLU(nn.Module):
    """The first half of the features times SiLU of the second half.

    Source:
        Shazeer 2020, arXiv:2002.05202; order of the halves as in the released code of ViV1T.
    """

    def forward(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d_half"]:
        """Gate the first half."""
        values, gates = features.chunk(2, dim=-1)
        return values * functional.silu(gates)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "swiglu": SwiGLU,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """What a transformer block is made of; see ``ViViTConfig`` for the fields."""

    embedding_dim: int
    num_heads: int
    head_dim: int
    attention_dropout: float
    ff_dim: int
    ff_activation: FeedForwardActivation
    ff_dropout: float
    drop_path: float
    qk_norm: bool

    @property
    def attention_dim(self) -> int:
        """Features of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def ff_input_dim(self) -> int:
        """Features that go into the activation; a gate doubles them."""
        return 2 * self.ff_dim if self.ff_activation == "swiglu" else self.ff_dim


class _Attention(nn.Module):
    """Softmax attention over a row, on products of its normalized tokens."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads, self.width, self.qk_norm = config.num_heads, config.attention_dim, config.qk_norm
        if config.qk_norm:
            self.query_norm: nn.Module = nn.LayerNorm(config.attention_dim)
            self.key_norm: nn.Module = nn.LayerNorm(config.attention_dim)
        else:
            self.query_norm = self.key_norm = nn.Identity()

    def forward(
        self, tokens: Float[Tensor, "row s d"], norm: nn.LayerNorm, weight: Float[Tensor, "e d"]
    ) -> tuple[Float[Tensor, "row s _"], Float[Tensor, "row s _"]]:
        """Return what attention makes of the tokens, and what is left of their product with the weights.

        Args:
            tokens: rows that do not see each other.
            norm: normalization of the tokens.
            weight: rows for queries, keys and values, each head by head, and then for the rest.
        """
        if not self.qk_norm and makes_again(tokens):
            return normed_attention(tokens, norm, weight, width=self.width, num_heads=self.num_heads)
        widths = [*[self.width] * 3, len(weight) - 3 * self.width]
        query, key, value, rest = normed_products(tokens, norm, weight, widths)
        query, key, value = (
            rearrange(features, "row s (head d) -> row head s d", head=self.num_heads)
            for features in (self.query_norm(query), self.key_norm(key), value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = rearrange(attended, "row head s d -> row s (head d)")
        return result, rest


class ParallelBlock(nn.Module):
    """``x + DropPath(attention(y)) + DropPath(feed_forward(y))`` with ``y = norm(x)`` and no biases.

    One matrix holds the weights of queries, keys, values and the input of the feed-forward activation.
    Dropout acts on what attention returns, not on the attention matrix.

    Source:
        Dehghani et al. 2023, arXiv:2302.05442, section 2.1; as used by ViV1T's released code.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        num_products = 3 * config.attention_dim + config.ff_input_dim
        self.norm = nn.LayerNorm(config.embedding_dim)
        self.fused = nn.Linear(config.embedding_dim, num_products, bias=False)
        self.attention = _Attention(config)
        self.attention_output = DroppedLinear(
            config.attention_dim, config.embedding_dim, rate=config.attention_dropout, bias=False
        )
        self.feed_forward = nn.Sequential(
            ACTIVATIONS[config.ff_activation](),
            DroppedLinear(config.ff_dim, config.embedding_dim, rate=config.ff_dropout, bias=False),
        )
        self.drop_path = DropPath(config.drop_path)
        initialize_linear(self)

    def forward(self, tokens: Float[Tensor, "row s d"]) -> Float[Tensor, "row s d"]:
        """Mix the tokens of each row; rows do not see each other."""
        attended, hidden = self.attention(tokens, self.norm, self.fused.weight)
        activation, output = self.feed_forward
        mixed = tokens + self.drop_path(self.attention_output(attended))
        result: Tensor = mixed + self.drop_path(output(hidden, activation))
        return result


class SequentialBlock(nn.Module):
    """Pre-norm attention, then a pre-norm feed-forward net, each with its residual connection.

    Source:
        The ``parallel_attention=False`` variant of ViV1T's released code: queries, keys and values without
        bias, everything else with; both branches end in their dropout.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.embedding_dim)
        self.fused = nn.Linear(config.embedding_dim, 3 * config.attention_dim, bias=False)
        self.attention = _Attention(config)
        self.attention_output = nn.Sequential(
            DroppedLinear(config.attention_dim, config.embedding_dim, rate=config.attention_dropout),
            nn.Dropout(config.attention_dropout),
        )
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.embedding_dim),
            nn.Linear(config.embedding_dim, config.ff_input_dim),
            ACTIVATIONS[config.ff_activation](),
            DroppedLinear(config.ff_dim, config.embedding_dim, rate=config.ff_dropout),
            nn.Dropout(config.ff_dropout),
        )
        self.drop_path = DropPath(config.drop_path)
        initialize_linear(self)

    def forward(self, tokens: Float[Tensor, "row s d"]) -> Float[Tensor, "row s d"]:
        """Mix the tokens of each row; rows do not see each other."""
        attended, _ = self.attention(tokens, self.norm, self.fused.weight)
        tokens = tokens + self.drop_path(self.attention_output(attended))
        result: Tensor = tokens + self.drop_path(self.feed_forward(tokens))
        return result


BLOCKS: dict[str, type[nn.Module]] = {"parallel": ParallelBlock, "sequential": SequentialBlock}


class Transformer(nn.Module):
    """A stack of equal blocks.

    Attributes:
        checkpointing: keep only each block's input in training and compute the rest again for the gradients.
    """

    def __init__(self, block: BlockName, config: BlockConfig, *, depth: int, checkpointing: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BLOCKS[block](config) for _ in range(depth))
        self.checkpointing = checkpointing

    def forward(self, tokens: Float[Tensor, "row s d"]) -> Float[Tensor, "row s d"]:
        """Mix the tokens of each row; rows do not see each other."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens


def initialize_linear(module: nn.Module) -> None:
    """Draw linear weights from a truncated normal distribution (deviation 0.02) and zero the biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
