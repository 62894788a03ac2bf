import math

import numpy as np
import pytest
import torch

from data.clips import ClipBatch
from training.augmentation import DWISENEURO_CUTMIX, CutMixConfig, cutmix, draw_boxes, draw_partners

ALWAYS = CutMixConfig(probability=1.0, canvas=(8, 10))


def make_batch(seed, *, num_clips=6, session="mouse", size=(4, 6), dtype=torch.float32, num_frames=3):
    generator = torch.Generator().manual_seed(seed)
    height, width = size

    def uniform(*shape):
        return torch.rand(shape, generator=generator)

    return ClipBatch(
        session=session,
        video=(255 * uniform(num_clips, 1, num_frames, height, width)).to(dtype),
        behavior=uniform(num_clips, 2, num_frames),
        pupil=uniform(num_clips, 2, num_frames),
        responses=uniform(num_clips, 5, num_frames),
        trial=torch.arange(num_clips) + 100 * seed,
        start=torch.zeros(num_clips, dtype=torch.int64),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_pixels_come_from_the_partner_inside_the_box_on_the_canvas_and_from_the_clip_outside(dtype):
    batch, partners = make_batch(0, dtype=dtype), make_batch(1, dtype=dtype)
    mixed = cutmix(batch, partners, ALWAYS, rng=np.random.default_rng(5))
    boxes = draw_boxes(6, (8, 10), ALWAYS, rng=np.random.default_rng(5))
    assert mixed.video.dtype == dtype
    for clip, (top, bottom, left, right) in enumerate(boxes.bounds):
        for row in range(4):
            for column in range(6):
                # The 4 x 6 video lies in the middle of the 8 x 10 canvas.
                inside = top <= row + 2 < bottom and left <= column + 2 < right
                source = partners if inside else batch
                assert torch.equal(
                    mixed.video[clip, 0, :, row, column], source.video[clip, 0, :, row, column]
                )


def test_responses_behavior_and_pupil_are_mixed_by_the_share_of_the_canvas():
    batch, partners = make_batch(0), make_batch(1)
    mixed = cutmix(batch, partners, ALWAYS, rng=np.random.default_rng(5))
    boxes = draw_boxes(6, (8, 10), ALWAYS, rng=np.random.default_rng(5))
    shares = set()
    for clip, (top, bottom, left, right) in enumerate(boxes.bounds):
        share = (bottom - top) * (right - left) / 80
        shares.add(share)
        for name in ("responses", "behavior", "pupil"):
            own, other = getattr(batch, name)[clip], getattr(partners, name)[clip]
            torch.testing.assert_close(getattr(mixed, name)[clip], (1 - share) * own + share * other)
    assert len(shares) > 3
    assert torch.equal(mixed.trial, batch.trial)


def test_boxes_follow_the_published_recipe():
    config = CutMixConfig(probability=1.0)
    boxes = draw_boxes(2000, (64, 64), config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rng.random(2000)
    shares = rng.beta(1.0, 1.0, size=2000)
    row_centers, column_centers = rng.integers(64, size=2000), rng.integers(64, size=2000)
    for clip in range(2000):
        half = math.floor(64 * math.sqrt(shares[clip])) // 2
        row, column = row_centers[clip], column_centers[clip]
        expected = [max(row - half, 0), min(row + half, 64), max(column - half, 0), min(column + half, 64)]
        assert list(boxes.bounds[clip]) == expected


def test_half_of_the_clips_stay_as_they_are_with_the_published_probability():
    boxes = draw_boxes(4000, (64, 64), DWISENEURO_CUTMIX, rng=np.random.default_rng(0))
    untouched = (boxes.bounds == 0).all(axis=1)
    assert untouched.mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000) + 0.01)
    assert np.all(boxes.area[untouched] == 0)


def test_without_a_canvas_the_share_is_that_of_the_replaced_pixels():
    batch, partners = make_batch(0, num_clips=50), make_batch(1, num_clips=50)
    mixed = cutmix(batch, partners, CutMixConfig(probability=1.0), rng=np.random.default_rng(1))
    shares = (mixed.video != batch.video).float().mean(dim=(1, 2, 3, 4))
    assert len(shares.unique()) > 3
    expected = torch.lerp(batch.responses, partners.responses, shares[:, None, None])
    torch.testing.assert_close(mixed.responses, expected)


def test_the_same_generator_gives_the_same_clips():
    batch, partners = make_batch(0), make_batch(1)
    first, second, third = (cutmix(batch, partners, ALWAYS, rng=np.random.default_rng(s)) for s in (3, 3, 4))
    assert torch.equal(first.video, second.video)
    assert torch.equal(first.responses, second.responses)
    assert not torch.equal(first.responses, third.responses)


def test_off_by_default():
    batch = make_batch(0)
    assert cutmix(batch, make_batch(1), CutMixConfig(), rng=np.random.default_rng(0)) is batch


def test_partners_are_other_clips_of_the_batch_each_once():
    batch = make_batch(0)
    met = {clip: set() for clip in range(6)}
    for seed in range(100):
        partners = draw_partners(batch, rng=np.random.default_rng(seed))
        assert sorted(partners.trial.tolist()) == batch.trial.tolist()
        for clip, trial in enumerate(partners.trial.tolist()):
            met[clip].add(trial)
            for name in ("video", "behavior", "pupil", "responses"):
                assert torch.equal(getattr(partners, name)[clip], getattr(batch, name)[trial])
    assert met == {clip: set(range(6)) - {clip} for clip in range(6)}


def test_a_clip_alone_is_its_own_partner():
    batch = make_batch(0, num_clips=1)
    assert draw_partners(batch, rng=np.random.default_rng(0)).trial.tolist() == [0]


def test_partners_that_do_not_fit_are_refused():
    batch, rng = make_batch(0), np.random.default_rng(0)
    with pytest.raises(ValueError, match="clips of other, but must be of mouse"):
        cutmix(batch, make_batch(1, session="other"), ALWAYS, rng=rng)
    with pytest.raises(ValueError, match=r"\(6, 1, 4, 4, 6\), but must be \(6, 1, 3, 4, 6\)"):
        cutmix(batch, make_batch(1, num_frames=4), ALWAYS, rng=rng)
    with pytest.raises(ValueError, match=r"canvas is \(3, 10\), but must hold the video's 4 x 6"):
        cutmix(batch, make_batch(1), CutMixConfig(probability=1.0, canvas=(3, 10)), rng=rng)


@pytest.mark.parametrize("bad", [{"probability": 1.5}, {"concentration": 0.0}, {"canvas": (0, 64)}])
def test_impossible_settings_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} is .*, but must"):
        CutMixConfig(**bad)
