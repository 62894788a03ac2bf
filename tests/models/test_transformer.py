import math

import pytest
import torch

from models.drop_path import DropPath
from models.transformer import (
    BLOCKS,
    BlockConfig,
    ParallelBlock,
    SequentialBlock,
    SwiGLU,
    Transformer,
)

ACTIVATION_FORMULAS = {
    "tanh": lambda x: 1 - 2 / (1 + torch.exp(2 * x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "swiglu": lambda x: x[..., :5] * x[..., 5:] / (1 + torch.exp(-x[..., 5:])),
}


def block_config(**changes):
    fields = dict.fromkeys(("attention_dropout", "ff_dropout", "drop_path"), 0.0) | {
        "embedding_dim": 6,
        "num_heads": 3,
        "head_dim": 4,
        "ff_dim": 5,
        "ff_activation": "gelu",
        "qk_norm": False,
    }
    return BlockConfig(**(fields | changes))


def double_block(kind, **changes):
    torch.manual_seed(0)
    block = BLOCKS[kind](block_config(**changes)).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    return block


def norm(x, layer):
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-5) * layer.weight + layer.bias


def attend(q, k, v, *, num_heads, head_dim):
    """Softmax attention, head by head and row by row."""
    out = torch.zeros_like(q)
    for row in range(len(q)):
        for head in range(num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = q[row, :, part] @ k[row, :, part].T / math.sqrt(head_dim)
            weights = torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True)
            out[row, :, part] = weights @ v[row, :, part]
    return out


@pytest.mark.parametrize("activation", ACTIVATION_FORMULAS)
def test_the_parallel_block_is_its_formula(activation):
    block = double_block("parallel", ff_activation=activation)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    fused = norm(x, block.norm) @ block.fused.weight.T
    a = attend(fused[..., :12], fused[..., 12:24], fused[..., 24:36], num_heads=3, head_dim=4)
    f = ACTIVATION_FORMULAS[activation](fused[..., 36:])
    expected = x + a @ block.attention_output.weight.T + f @ block.feed_forward[1].weight.T
    torch.testing.assert_close(block(x), expected)


def test_the_sequential_block_is_its_formula():
    block = double_block("sequential")
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    fused = norm(x, block.norm) @ block.fused.weight.T
    a = attend(fused[..., :12], fused[..., 12:24], fused[..., 24:], num_heads=3, head_dim=4)
    x1 = x + a @ block.attention_output[0].weight.T + block.attention_output[0].bias
    first, second = block.feed_forward[1], block.feed_forward[3]
    hidden = ACTIVATION_FORMULAS["gelu"](norm(x1, block.feed_forward[0]) @ first.weight.T + first.bias)
    torch.testing.assert_close(block(x), x1 + hidden @ second.weight.T + second.bias)


def test_query_and_key_norms_act_on_all_heads_together():
    block = double_block("parallel", qk_norm=True)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    fused = norm(x, block.norm) @ block.fused.weight.T
    q = norm(fused[..., :12], block.attention.query_norm)
    k = norm(fused[..., 12:24], block.attention.key_norm)
    a = attend(q, k, fused[..., 24:36], num_heads=3, head_dim=4)
    expected = x + a @ block.attention_output.weight.T + block.feed_forward(fused[..., 36:])
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_linear_weights_start_from_a_truncated_normal_and_biases_at_zero(kind):
    torch.manual_seed(0)
    block = BLOCKS[kind](block_config(embedding_dim=64, head_dim=64))
    for name, parameter in block.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif "bias" in name:
            assert not parameter.any(), name


def test_swiglu_gates_the_first_half_with_the_second():
    x = torch.tensor([[2.0, 3.0, 0.0, 1.0]])
    torch.testing.assert_close(SwiGLU()(x), torch.tensor([[0.0, 3 / (1 + math.exp(-1))]]))


def test_drop_path_drops_whole_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = DropPath(0.3)
    dropped = drop_path(torch.ones(20_000, 2, 3))
    rows = dropped.flatten(1)
    assert (rows == rows[:, :1]).all()
    assert rows.unique().tolist() == pytest.approx([0, 1 / 0.7])
    # Three standard deviations of the share of 20,000 coin flips.
    assert (rows[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / 20_000))


def test_drop_path_does_nothing_in_evaluation_or_at_rate_zero():
    x = torch.randn(50, 2, 3)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("kind", BLOCKS)
def test_both_branches_drop_rows_independently(kind):
    torch.manual_seed(0)
    block = BLOCKS[kind](block_config(drop_path=0.5))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 4, 6).expand(400, -1, -1)
    outcomes = torch.round(block(x)[:, 0, 0], decimals=3).unique(return_counts=True)[1]
    assert len(outcomes) == 4
    assert outcomes.min() > 60


@pytest.mark.parametrize("kind", BLOCKS)
def test_rows_do_not_see_each_other(kind):
    block = double_block(kind)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    changed = x.clone()
    changed[1] = 0
    torch.testing.assert_close(block(changed)[[0, 2]], block(x)[[0, 2]])


@pytest.mark.parametrize("kind", BLOCKS)
def test_checkpointing_changes_neither_result_nor_gradients(kind):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = block_config(attention_dropout=0.3, ff_dropout=0.3, drop_path=0.3)
        transformer = Transformer(kind, config, depth=2, checkpointing=checkpointing)
        x = torch.randn(4, 5, 6, requires_grad=True)
        out = transformer(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *transformer.parameters()])])
    torch.testing.assert_close(*results)


def test_a_sequential_block_has_biases_where_the_parallel_one_has_none():
    # Widths: 6 -> 3 x 12 (+ 5); 12 -> 6; 5 -> 6.
    weights = 6 * 36 + 12 * 6 + 6 * 5 + 5 * 6
    parallel = sum(p.numel() for p in ParallelBlock(block_config()).parameters())
    sequential = sum(p.numel() for p in SequentialBlock(block_config()).parameters())
    assert parallel == weights + 2 * 6
    assert sequential == weights + 2 * 6 + 2 * 6 + 6 + 5 + 6
