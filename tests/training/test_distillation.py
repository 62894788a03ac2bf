import pytest
import torch
from torch import nn

from training.distillation import DistillationConfig, distilled_loss, pair_weights
from training.losses import DWISENEURO_LOSS, clip_loss

NEURONS = {"a": 3, "b": 5, "c": 2}
# Five clips: two of a, one of c, two of b.
RECORDED_IN = ["a", "c", "b", "a", "b"]
OWN = torch.tensor([[session == name for name in NEURONS] for session in RECORDED_IN])


def make_rates(seed, *, num_clips=5, num_frames=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        session: torch.rand(num_clips, num_neurons, num_frames, generator=generator) + 0.1
        for session, num_neurons in NEURONS.items()
    }


def own_responses(recorded):
    return {session: rates[OWN[:, column]] for column, (session, rates) in enumerate(recorded.items())}


def test_the_teacher_gets_the_ratio_of_all_weight():
    weights = pair_weights(OWN, ratio=0.36)
    assert weights.sum().item() == pytest.approx(1)
    assert weights[~OWN].sum().item() == pytest.approx(0.36)
    assert weights[~OWN].unique().numel() == weights[OWN].unique().numel() == 1


def test_weights_are_those_of_the_released_formula():
    own = torch.zeros(32, 10, dtype=torch.bool)
    own[torch.arange(32), torch.arange(32) % 10] = True
    expected = torch.where(own, 1.0, 0.36 / 0.64 * 32 / 288)
    torch.testing.assert_close(pair_weights(own, ratio=0.36), expected / expected.sum())


def test_a_single_session_has_nothing_to_be_taught():
    torch.testing.assert_close(pair_weights(torch.ones(4, 1).bool(), ratio=0.36), torch.full((4, 1), 0.25))


def test_the_loss_is_that_of_a_loop_over_clips_and_sessions():
    predicted, taught, recorded = make_rates(0), make_rates(1), make_rates(2)
    reference = nn.PoissonNLLLoss(log_input=False, full=False, eps=1e-8, reduction="sum")
    total, total_weight = 0.0, 0.0
    for clip, own_session in enumerate(RECORDED_IN):
        for session in NEURONS:
            target = recorded if session == own_session else taught
            weight = 1.0 if session == own_session else 0.36 / 0.64 * 5 / 10
            total += weight * reference(predicted[session][clip], target[session][clip]).item()
            total_weight += weight
    loss = distilled_loss(
        predicted,
        taught,
        own_responses(recorded),
        own=OWN,
        weights=pair_weights(OWN, ratio=0.36),
        loss=DWISENEURO_LOSS,
    )
    assert loss.item() == pytest.approx(total / total_weight, rel=1e-5)


def test_parts_of_a_step_add_up_to_the_step():
    predicted, taught, recorded = make_rates(0), make_rates(1), make_rates(2)
    weights = pair_weights(OWN, ratio=0.36)

    def loss_of(clips):
        own = OWN[clips]
        return distilled_loss(
            {session: rates[clips] for session, rates in predicted.items()},
            {session: rates[clips] for session, rates in taught.items()},
            {
                session: rates[clips][own[:, column]]
                for column, (session, rates) in enumerate(recorded.items())
                if own[:, column].any()
            },
            own=own,
            weights=weights[clips],
            loss=DWISENEURO_LOSS,
        ).item()

    whole = loss_of(slice(None))
    assert loss_of(slice(0, 2)) + loss_of(slice(2, 3)) + loss_of(slice(3, 5)) == pytest.approx(
        whole, rel=1e-5
    )


def test_without_a_teachers_share_it_is_the_ordinary_loss():
    predicted, taught, recorded = make_rates(0), make_rates(1), make_rates(2)
    weights = torch.where(OWN, 1 / 5, 0.0)
    loss = distilled_loss(
        predicted, taught, own_responses(recorded), own=OWN, weights=weights, loss=DWISENEURO_LOSS
    )
    ordinary = sum(
        clip_loss(predicted[s][OWN[:, c]], recorded[s][OWN[:, c]], DWISENEURO_LOSS, scale=1 / 5)
        for c, s in enumerate(NEURONS)
    )
    torch.testing.assert_close(loss, ordinary)


def test_only_the_student_learns_and_the_teachers_rates_stay():
    predicted = {session: rates.requires_grad_() for session, rates in make_rates(0).items()}
    taught = {session: rates.requires_grad_() for session, rates in make_rates(1).items()}
    before = {session: rates.detach().clone() for session, rates in taught.items()}
    loss = distilled_loss(
        predicted,
        taught,
        own_responses(make_rates(2)),
        own=OWN,
        weights=pair_weights(OWN, ratio=0.36),
        loss=DWISENEURO_LOSS,
    )
    loss.backward()
    for session in NEURONS:
        assert predicted[session].grad.abs().min() > 0
        assert taught[session].grad is None
        assert torch.equal(taught[session].detach(), before[session])


def test_what_does_not_fit_is_refused():
    predicted, taught, responses = make_rates(0), make_rates(1), own_responses(make_rates(2))
    weights = pair_weights(OWN, ratio=0.36)
    with pytest.raises(ValueError, match="b has responses for 1 clips, but must have them for 2"):
        distilled_loss(
            predicted,
            taught,
            {**responses, "b": responses["b"][:1]},
            own=OWN,
            weights=weights,
            loss=DWISENEURO_LOSS,
        )
    del taught["c"]
    with pytest.raises(ValueError, match="taught has a, b and own has 3 columns"):
        distilled_loss(predicted, taught, responses, own=OWN, weights=weights, loss=DWISENEURO_LOSS)
    with pytest.raises(ValueError, match="nowhere True"):
        pair_weights(torch.zeros(2, 3).bool(), ratio=0.36)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match=r"ratio is .*, but must be above 0 and below 1"):
        DistillationConfig(ratio=ratio)
