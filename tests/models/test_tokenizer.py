import pytest
import torch
from einops import rearrange, repeat
from torch.nn import functional

from models.tokenizer import PatchGrid, Tokenizer


def grid(spatial_size=3, spatial_stride=2, temporal_size=4, temporal_stride=1):
    return PatchGrid(
        spatial_size=spatial_size,
        spatial_stride=spatial_stride,
        temporal_size=temporal_size,
        temporal_stride=temporal_stride,
    )


def unfolded(tokenizer, video, planes):
    """The tokenizer as it is written in the paper: the matrix of all patches, norm, linear, norm."""
    g = tokenizer.grid
    frame_shape = {"h": video.shape[3], "w": video.shape[4]}
    x = torch.cat([video, repeat(planes, "b c t -> b c t h w", **frame_shape)], dim=1)
    x = x.unfold(2, g.temporal_size, g.temporal_stride)
    x = x.unfold(3, g.spatial_size, g.spatial_stride).unfold(4, g.spatial_size, g.spatial_stride)
    x = rearrange(x, "b c t h w pt ph pw -> b t (h w) (c pt ph pw)")
    x = functional.layer_norm(x, x.shape[-1:], tokenizer.norm.weight, tokenizer.norm.bias)
    x = functional.linear(x, tokenizer.projection.weight, tokenizer.projection.bias)
    return functional.layer_norm(x, x.shape[-1:], tokenizer.output_norm.weight, tokenizer.output_norm.bias)


def make(patches, num_planes, *, dtype=torch.float64):
    torch.manual_seed(0)
    tokenizer = Tokenizer(patches, num_planes=num_planes, embedding_dim=6, dropout=0.0).to(dtype)
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter)
    return tokenizer


GRIDS = [
    grid(),
    grid(temporal_stride=3),
    grid(spatial_size=1, spatial_stride=1, temporal_size=1),
    grid(spatial_size=5, spatial_stride=5, temporal_size=9, temporal_stride=9),
]


@pytest.mark.parametrize("num_planes", [0, 1, 4])
@pytest.mark.parametrize("patches", GRIDS)
def test_tokens_equal_norm_and_linear_on_the_matrix_of_all_patches(patches, num_planes):
    tokenizer = make(patches, num_planes)
    video = 3 + 2 * torch.randn(2, 1, 11, 7, 8, dtype=torch.float64)
    planes = torch.randn(2, num_planes, 11, dtype=torch.float64)
    # The moments are computed in single precision whatever the input is.
    torch.testing.assert_close(
        tokenizer(video, planes), unfolded(tokenizer, video, planes), rtol=1e-4, atol=1e-4
    )


def test_gradients_equal_those_of_the_matrix_of_all_patches():
    tokenizer = make(grid(), 4)
    video = torch.randn(2, 1, 7, 7, 8, dtype=torch.float64, requires_grad=True)
    planes = torch.randn(2, 4, 7, dtype=torch.float64, requires_grad=True)
    inputs = [video, planes, *tokenizer.parameters()]
    cotangent = torch.randn(2, 4, 9, 6, dtype=torch.float64)
    fast = torch.autograd.grad(tokenizer(video, planes), inputs, cotangent)
    slow = torch.autograd.grad(unfolded(tokenizer, video, planes), inputs, cotangent)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)


def test_a_bright_and_flat_patch_loses_no_precision():
    tokenizer = make(grid(), 0, dtype=torch.float32)
    video = 200 + 0.1 * torch.randn(1, 1, 6, 7, 7)
    expected = unfolded(tokenizer.double(), video.double(), video.new_zeros(1, 0, 6).double())
    tokens = tokenizer.float()(video, video.new_zeros(1, 0, 6))
    torch.testing.assert_close(tokens, expected.float(), rtol=0, atol=0.01)


def test_dropout_drops_features_of_tokens_in_training_only():
    tokenizer = Tokenizer(grid(), num_planes=0, embedding_dim=50, dropout=0.4)
    video, planes = torch.randn(4, 1, 12, 15, 15), torch.zeros(4, 0, 12)
    share = (tokenizer(video, planes) == 0).double().mean().item()
    assert share == pytest.approx(0.4, abs=0.01)
    assert not (tokenizer.eval()(video, planes) == 0).any()


def test_the_grid_counts_patches_like_unfold():
    for g in GRIDS:
        for side in range(g.spatial_size, 12):
            expected = torch.zeros(side).unfold(0, g.spatial_size, g.spatial_stride).shape[0]
            assert g.rows_and_columns((side, 20))[0] == expected
            assert g.rows_and_columns((20, side))[1] == expected
        for frames in range(g.temporal_size, 30):
            steps = torch.zeros(frames).unfold(0, g.temporal_size, g.temporal_stride)
            assert g.num_steps(frames) == len(steps)


def test_a_patch_larger_than_a_frame_is_refused():
    with pytest.raises(ValueError, match="spatial_patch_size is 9, but must be at most 8"):
        grid(spatial_size=9).rows_and_columns((8, 20))


def test_a_clip_shorter_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="has 3 frames, but must have at least temporal_patch_size, 4"):
        grid().num_steps(3)
