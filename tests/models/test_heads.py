"""Several readouts on one core: the mean of what each would predict, the mean of what each would lose."""

import pytest
import torch
from test_v1fm import build, clip

from models.cores.v1fm import V1FMConfig
from models.heads import head_state

HEADS = ("mean-2-4", "adaptive-4", "plain")
CONFIGS = (
    {"levels": (2, 4), "fusion": "mean"},
    {"levels": (4,), "fusion": "adaptive"},
    {"levels": (), "fusion": "mean"},
)


def alone(encoder, *, num_neurons=(5,)):
    """The same core with each head alone, built without knowing of heads."""
    encoders = []
    for index, config in enumerate(CONFIGS):
        single = build(num_neurons, **config)
        single.load_state_dict(head_state(encoder.state_dict(), index))
        encoders.append(single)
    return encoders


@pytest.mark.parametrize("is_training", [True, False])
def test_the_prediction_is_the_mean_of_the_heads_rates(is_training):
    encoder = build(heads=HEADS, init_sigma=1e-8).train(is_training)
    singles = [single.train(is_training) for single in alone(encoder)]
    video, behavior, pupil = clip()
    expected = torch.stack([single(video, behavior, pupil, session="mouse0") for single in singles])
    found = encoder(video, behavior, pupil, session="mouse0")
    torch.testing.assert_close(found, expected.mean(dim=0), rtol=1e-4, atol=1e-5)
    by_head = encoder.rates_by_head(video, behavior, pupil, session="mouse0")
    torch.testing.assert_close(by_head, expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_heads_has_one():
    encoder = build().eval()
    video, behavior, pupil = clip()
    by_head = encoder.rates_by_head(video, behavior, pupil, session="mouse0")
    assert torch.equal(by_head[0], encoder(video, behavior, pupil, session="mouse0"))
    assert len(by_head) == 1


def test_heads_are_cut_out_whole():
    encoder = build((5, 7), heads=HEADS)
    total = sum(len(head_state(encoder.state_dict(), index)) for index in range(3))
    shared = sum(not name.startswith("readouts") for name in encoder.state_dict())
    assert total == len(encoder.state_dict()) + 2 * shared


@pytest.mark.parametrize(
    ("heads", "words"),
    [(("mean",), "head is 'mean'"), (("sum-2",), "head is 'sum-2'"), (("mean-x",), "head is 'mean-x'"),
     (("plain", "plain"), "of names that each stand once"), (("mean-1",), "must be ascending")],
)  # fmt: skip
def test_heads_that_are_none_are_refused(heads, words):
    with pytest.raises(ValueError, match=words):
        V1FMConfig(heads=heads)
