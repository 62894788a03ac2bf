"""What training minimizes: the Poisson loss in each system's scaling, and ViV1T's correlation term."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Poisson loss summed over clips, neurons and frames, with an optional correlation term, scaled.

    The defaults are those of the Factorized and GRU baselines (sensorium_2023 starter kit).

    Attributes:
        scale: what the sum is multiplied with. ``sqrt_dataset``: the square root of a session's trials over
            its clips per step (baselines, ViV1T). ``none``: 1 (V1FM). ``mean_over_clips``: one over the clips
            of a step, of all sessions together (DwiseNeuro).
        count: the trials that ``sqrt_dataset`` counts: of all tiers (baselines, where the tier is only a
            sampler) or the training trials (ViV1T).
        eps: added to the rate.
        eps_in: ``log`` adds ``eps`` only inside the logarithm (baselines, DwiseNeuro); ``everywhere`` adds it
            to rate and response in all places (V1FM, ViV1T).
        correlation_weight: weight of the sum over neurons of 1 minus the correlation over all clips and
            frames of a session's batch (ViV1T: 1000).
    """

    scale: Literal["sqrt_dataset", "none", "mean_over_clips"] = "sqrt_dataset"
    count: Literal["all", "training"] = "all"
    eps: float = 1e-8
    eps_in: Literal["log", "everywhere"] = "log"
    correlation_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be computed."""
        for name, known in (
            ("scale", ("sqrt_dataset", "none", "mean_over_clips")),
            ("count", ("all", "training")),
            ("eps_in", ("log", "everywhere")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(known)}")
        if not 0 < self.eps < 1:
            raise ValueError(f"eps is {self.eps}, but must be between 0 and 1")
        if not 0 <= self.correlation_weight < math.inf:
            raise ValueError(f"correlation_weight is {self.correlation_weight}, but must be 0 or more")

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss of some clips of a batch depends on the others."""
        return self.correlation_weight > 0


VIVIT_LOSS = LossConfig(
    count="training", eps=torch.finfo(torch.float32).eps, eps_in="everywhere", correlation_weight=1000.0
)
"""ViV1T's released code (README command, ds_mode 3)."""

V1FM_LOSS = LossConfig(scale="none", eps_in="everywhere")
"""Dynamic-V1FM's released code."""

DWISENEURO_LOSS = LossConfig(scale="mean_over_clips")
"""DwiseNeuro's released code, stage 1; stage 2 adds ``training.distillation``."""


def loss_scale(config: LossConfig, *, num_trials: int, session_clips: int, step_clips: int) -> float:
    """Return the factor of a session's loss in one optimizer step.

    Args:
        config: says which rule.
        num_trials: trials of the session, see ``LossConfig.count``.
        session_clips: clips of this session in the step, of all micro-batches and processes.
        step_clips: clips of all sessions in the step.
    """
    counts = {"num_trials": num_trials, "session_clips": session_clips, "step_clips": step_clips}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, but must be at least 1")
    factors = {
        "sqrt_dataset": math.sqrt(num_trials / session_clips),
        "none": 1.0,
        "mean_over_clips": 1.0 / step_clips,
    }
    return factors[config.scale]


def poisson_loss(
    predicted: Float[Tensor, "b n t"], responses: Float[Tensor, "b n t"], config: LossConfig
) -> Float[Tensor, " b"]:
    """Return the Poisson loss of each clip, summed over neurons and frames, unscaled.

    Args:
        predicted: non-negative rates.
        responses: non-negative activity.
        config: ``eps`` and where it is added.
    """
    predicted, responses = predicted.float(), responses.float()
    rate = predicted + config.eps
    if config.eps_in == "log":
        losses = predicted - responses * rate.log()
    else:
        losses = rate - (responses + config.eps) * rate.log()
    return losses.sum(dim=(1, 2))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchMoments:
    """Means and centered second moments of predictions and responses over clips and frames, per neuron.

    Attributes:
        count: clips times frames.
        mean_predicted: mean prediction.
        mean_responses: mean response.
        square_predicted: sum of squared deviations of the prediction.
        square_responses: sum of squared deviations of the responses.
        product: sum of products of deviations.
    """

    count: float
    mean_predicted: Float[Tensor, " n"]
    mean_responses: Float[Tensor, " n"]
    square_predicted: Float[Tensor, " n"]
    square_responses: Float[Tensor, " n"]
    product: Float[Tensor, " n"]

    @classmethod
    def of(cls, predicted: Float[Tensor, "b n t"], responses: Float[Tensor, "b n t"]) -> "BatchMoments":
        """Summarize some clips; differentiable."""
        predicted, responses = predicted.float(), responses.float()
        mean_predicted, mean_responses = predicted.mean(dim=(0, 2)), responses.mean(dim=(0, 2))
        p, r = predicted - mean_predicted[:, None], responses - mean_responses[:, None]
        return cls(
            count=float(predicted.shape[0] * predicted.shape[2]),
            mean_predicted=mean_predicted,
            mean_responses=mean_responses,
            square_predicted=p.square().sum(dim=(0, 2)),
            square_responses=r.square().sum(dim=(0, 2)),
            product=(p * r).sum(dim=(0, 2)),
        )

    def merge(self, other: "BatchMoments") -> "BatchMoments":
        """Return the moments of both parts together; differentiable."""
        count = self.count + other.count
        share, weight = other.count / count, self.count * other.count / count
        p, r = other.mean_predicted - self.mean_predicted, other.mean_responses - self.mean_responses
        return BatchMoments(
            count=count,
            mean_predicted=self.mean_predicted + share * p,
            mean_responses=self.mean_responses + share * r,
            square_predicted=self.square_predicted + other.square_predicted + weight * p.square(),
            square_responses=self.square_responses + other.square_responses + weight * r.square(),
            product=self.product + other.product + weight * p * r,
        )

    def correlation(self, eps: float) -> Float[Tensor, " n"]:
        """Return the correlation as ViV1T computes it: ``eps`` is added to both standard deviations.

        The gradient of a constant neuron is 0 (that of the square root would be NaN).
        """
        deviation_predicted = _root(self.square_predicted / self.count)
        deviation_responses = _root(self.square_responses / self.count)
        return self.product / self.count / ((deviation_predicted + eps) * (deviation_responses + eps))

    def pack(self) -> Float[Tensor, "6 n"]:
        """Return everything as one tensor, to send it to other processes."""
        counts = torch.full_like(self.product, self.count)
        return torch.stack(
            [
                counts,
                self.mean_predicted,
                self.mean_responses,
                self.square_predicted,
                self.square_responses,
                self.product,
            ]
        )

    @classmethod
    def unpack(cls, packed: Float[Tensor, "6 n"]) -> "BatchMoments":
        """Read what ``pack`` returned."""
        _, mean_predicted, mean_responses, square_predicted, square_responses, product = packed.unbind()
        return cls(
            count=float(packed[0, 0]),
            mean_predicted=mean_predicted,
            mean_responses=mean_responses,
            square_predicted=square_predicted,
            square_responses=square_responses,
            product=product,
        )


def clip_loss(
    predicted: Float[Tensor, "b n t"],
    responses: Float[Tensor, "b n t"],
    config: LossConfig,
    *,
    scale: float,
    others: Sequence[BatchMoments] = (),
) -> Float[Tensor, ""]:
    """Return the loss of one micro-batch, such that micro-batches add up to the loss of their batch.

    Value and gradient of the sum over micro-batches (and processes) equal those of the whole batch. For a
    loss that ``needs_whole_batch`` this takes a first pass over the micro-batches without gradients and with
    the same random numbers, which collects ``BatchMoments.of`` each; the second pass hands every micro-batch
    the moments of all others. A batch that is one micro-batch needs no first pass.

    Args:
        predicted: non-negative rates.
        responses: the recorded activity of the same frames.
        config: which loss.
        scale: from ``loss_scale``.
        others: moments of the other micro-batches of the same session and step; without gradients.
    """
    loss = poisson_loss(predicted, responses, config).sum()
    if config.correlation_weight > 0:
        own = BatchMoments.of(predicted, responses)
        whole = own
        for part in others:
            whole = whole.merge(part)
        term = (1 - whole.correlation(config.eps)).sum()
        # Every micro-batch sees the whole term and its own part of the gradient. So that the values, too, add
        # up to the term once, each one counts its share of the frames.
        shared = term - term.detach() * (1 - own.count / whole.count)
        loss = loss + config.correlation_weight * shared
    return scale * loss


def _root(square: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)
