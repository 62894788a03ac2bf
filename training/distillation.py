"""Learning from another encoder: its predictions stand in for the responses that no mouse gave to a clip."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.losses import LossConfig, poisson_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationConfig:
    """Where the targets of the sessions come from that were not shown a clip; off without a teacher.

    Attributes:
        teacher: checkpoint of the encoder that predicts them; DwiseNeuro's stage 2 takes the stage-1 encoder
            of the same fold.
        ratio: share of the loss's weight that goes to the teacher's targets. DwiseNeuro's released config has
            0.36, that is 36 % (its README says 0.36 %).
    """

    teacher: str | None = None
    ratio: float = 0.36

    def __post_init__(self) -> None:
        """Refuse a share that leaves nothing for recorded responses."""
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}, but must be above 0 and below 1")


def pair_weights(own: Bool[Tensor, "b s"], *, ratio: float) -> Float[Tensor, "b s"]:
    """Return the weight of each pair of clip and session in the loss of one step; they sum to 1.

    Recorded pairs share ``1 - ratio`` evenly, the others ``ratio``; without any others, recorded pairs get
    all. For a step in parts (micro-batches, processes) compute the weights of the whole step and hand out its
    rows.

    Args:
        own: True where the clip was recorded in the session.
        ratio: see ``DistillationConfig``.

    Source:
        DwiseNeuro's released code: weight 1 for a recorded pair, ratio / (1 - ratio) * recorded / missing for
        each missing one, divided by their sum.
    """
    num_own = int(own.sum())
    num_missing = own.numel() - num_own
    if num_own == 0:
        raise ValueError("own is nowhere True, but a step must hold at least one recorded clip")
    if num_missing == 0:
        ratio = 0.0
    missing_weight = ratio / max(num_missing, 1)
    weights = torch.full(own.shape, missing_weight, dtype=torch.float32, device=own.device)
    return weights.masked_fill(own, (1 - ratio) / num_own)


def distilled_loss(
    predicted: Mapping[str, Float[Tensor, "b _n t"]],
    taught: Mapping[str, Float[Tensor, "b _n t"]],
    responses: Mapping[str, Float[Tensor, "_own _n t"]],
    *,
    own: Bool[Tensor, "b s"],
    weights: Float[Tensor, "b s"],
    loss: LossConfig,
) -> Float[Tensor, ""]:
    """Return the weighted Poisson loss of all pairs of clip and session.

    Args:
        predicted: rates of every clip for the neurons of each session; the order of sessions is that of the
            columns of ``own``.
        taught: the teacher's rates, without gradients, on the same input and in the same order.
        responses: recorded activity, of a session's own clips in the order of its True rows; sessions without
            any may be missing.
        own: True where the clip was recorded in the session.
        weights: rows of ``pair_weights`` that belong to these clips.
        loss: constants of the Poisson loss; its scale does not apply, because the weights hold it.

    Raises:
        ValueError: sessions differ, or a session's responses are not as many as its clips.
    """
    sessions = list(predicted)
    if sessions != list(taught) or len(sessions) != own.shape[1]:
        raise ValueError(
            f"predicted has sessions {', '.join(sessions)}, taught has {', '.join(taught)} "
            f"and own has {own.shape[1]} columns, but all must have the same sessions"
        )
    losses = [
        poisson_loss(predicted[session], _targets(session, taught, responses, own[:, column]), loss)
        for column, session in enumerate(sessions)
    ]
    return (torch.stack(losses, dim=1) * weights).sum()


def _targets(
    session: str,
    taught: Mapping[str, Tensor],
    responses: Mapping[str, Tensor],
    own: Bool[Tensor, " b"],
) -> Float[Tensor, "b n t"]:
    targets = taught[session].detach().float()
    num_own, num_recorded = int(own.sum()), len(responses[session]) if session in responses else 0
    if num_own != num_recorded:
        raise ValueError(
            f"{session} has responses for {num_recorded} clips, but must have them for {num_own}"
        )
    if num_own == 0:
        return targets
    targets = targets.clone()
    targets[own] = responses[session].float()
    return targets
