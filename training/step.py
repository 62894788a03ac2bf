"""One optimizer step's gradient: from micro-batches and processes, yet that of the whole batch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.clips import ClipBatch
from models.encoder import Encoder
from training.device import ComputeConfig, autocast
from training.distillation import distilled_loss, pair_weights
from training.losses import BatchMoments, LossConfig, clip_loss, loss_scale
from training.ranks import Ranks


class NonFiniteLossError(RuntimeError):
    """The loss is no longer a number; the run has failed."""


@dataclass(slots=True, kw_only=True)
class LossSum:
    """Training loss of some steps.

    Attributes:
        total: scaled loss over its scale, summed over clips, neurons and frames.
        count: clips times neurons times frames.
        clips: clips.
    """

    total: float = 0.0
    count: int = 0
    clips: int = 0

    def add(self, other: "LossSum") -> None:
        """Add the loss of other steps."""
        self.total += other.total
        self.count += other.count
        self.clips += other.clips

    @property
    def mean(self) -> float:
        """Loss per neuron and frame."""
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientConfig:
    """What the gradient of a step depends on.

    Attributes:
        loss: which loss.
        compute: precision.
        num_trials: trials of each session, for the loss's scale.
        micro_batch: clips of each session computed at once.
        ranks: this process among the others.
        scale_up: multiplies the loss before the backward pass (fp16); 1 otherwise.
        teacher: encoder that predicts the targets of the sessions that were not shown a clip.
        teacher_ratio: share of the loss's weight that goes to them.
    """

    loss: LossConfig
    compute: ComputeConfig
    num_trials: Mapping[str, int]
    micro_batch: Mapping[str, int]
    ranks: Ranks = field(default_factory=Ranks)
    scale_up: Callable[[Tensor], Tensor] = lambda loss: loss
    teacher: Encoder | None = None
    teacher_ratio: float = 0.36


def seed_for(*numbers: int) -> int:
    """Return a seed for torch's generator that is a function of ``numbers`` alone."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def accumulate_gradients(
    encoder: Encoder,
    batches: Sequence[ClipBatch],
    config: GradientConfig,
    *,
    seed: tuple[int, ...],
) -> LossSum:
    """Add the gradient of a step to the parameters' ``grad``.

    Args:
        encoder: in training mode.
        batches: this process's clips, normalized and on the device, one batch for each session.
        config: loss, precision, micro-batches.
        seed: numbers that the step's random numbers are a function of.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite.
    """
    sum_ = LossSum()
    losses: list[tuple[str, Tensor]] = []
    counts = _global_counts(encoder, batches, config.ranks)
    step_clips = sum(counts.values())
    for batch in batches:
        scale = loss_scale(
            config.loss,
            num_trials=config.num_trials[batch.session],
            session_clips=counts[batch.session],
            step_clips=step_clips,
        )
        if config.teacher is None:
            loss = _accumulate_batch(encoder, batch, config, scale=scale, seed=seed, sum_=sum_)
        else:
            scale = 1.0 / step_clips
            loss = _accumulate_taught(
                encoder, batch, config, config.teacher, step_clips=step_clips, seed=seed, sum_=sum_
            )
        losses.append((batch.session, loss / scale))
    # The penalty belongs to the step, not to a process: gradients are summed over processes.
    penalty = encoder.regularizer()
    if penalty.requires_grad and config.ranks.is_first:
        config.scale_up(penalty).backward()
    sum_.total = _require_finite(losses)
    return sum_


def _accumulate_batch(
    encoder: Encoder,
    batch: ClipBatch,
    config: GradientConfig,
    *,
    scale: float,
    seed: tuple[int, ...],
    sum_: LossSum,
) -> Tensor:
    size = max(config.micro_batch[batch.session], 1)
    parts = [batch.select(slice(start, start + size)) for start in range(0, len(batch), size)]
    session = encoder.sessions.index(batch.session)

    def predict(index: int) -> tuple[Tensor, Tensor]:
        # Seeded per micro-batch: both passes of a two-pass loss see the same dropout and sampling noise.
        torch.manual_seed(seed_for(*seed, session, index))
        return _predict(encoder, parts[index], config.compute)

    moments: list[BatchMoments] = []
    two_passes = config.loss.needs_whole_batch and len(parts) > 1
    if two_passes:
        with torch.no_grad():
            moments = [BatchMoments.of(*predict(index)) for index in range(len(parts))]
        remote = _moments_elsewhere(moments, config.ranks)
    total = batch.behavior.new_zeros(())
    for index in range(len(parts)):
        predicted, responses = predict(index)
        others: list[BatchMoments] = []
        if two_passes:
            others = moments[:index] + moments[index + 1 :] + remote
        elif config.loss.needs_whole_batch:
            with torch.no_grad():
                others = _moments_elsewhere([BatchMoments.of(predicted, responses)], config.ranks)
        loss = clip_loss(predicted, responses, config.loss, scale=scale, others=others)
        config.scale_up(loss).backward()
        total += loss.detach()
        sum_.count += predicted.numel()
        sum_.clips += len(parts[index])
    return total


def _accumulate_taught(
    encoder: Encoder,
    batch: ClipBatch,
    config: GradientConfig,
    teacher: Encoder,
    *,
    step_clips: int,
    seed: tuple[int, ...],
    sum_: LossSum,
) -> Tensor:
    """Accumulate the gradient of recorded and taught responses (DwiseNeuro, stage 2)."""
    session = encoder.sessions.index(batch.session)
    # Every clip of the step has one row, and rows of one session are alike.
    step_own = torch.zeros(step_clips, len(encoder.sessions), dtype=torch.bool, device=batch.start.device)
    step_own[:, session] = True
    weights = pair_weights(step_own, ratio=config.teacher_ratio)
    size = max(config.micro_batch[batch.session], 1)
    total = batch.behavior.new_zeros(())
    for index, start in enumerate(range(0, len(batch), size)):
        part = batch.select(slice(start, start + size))
        assert part.responses is not None
        torch.manual_seed(seed_for(*seed, session, index))
        predicted = _predict_all(encoder, part, config.compute, sessions=encoder.sessions)
        with torch.no_grad():
            taught = _predict_all(teacher, part, config.compute, sessions=encoder.sessions)
        num_frames = predicted[batch.session].shape[2]
        loss = distilled_loss(
            predicted,
            taught,
            {batch.session: part.responses[..., -num_frames:]},
            own=step_own[: len(part)],
            weights=weights[: len(part)],
            loss=config.loss,
        )
        config.scale_up(loss).backward()
        total += loss.detach()
        sum_.count += predicted[batch.session].numel()
        sum_.clips += len(part)
    return total


def _predict_all(
    encoder: Encoder, part: ClipBatch, compute: ComputeConfig, *, sessions: Sequence[str]
) -> dict[str, Tensor]:
    with autocast(compute, part.video.device):
        features = encoder.features(part.video, part.behavior, part.pupil)
        return {
            session: encoder.read(features, part.behavior, part.pupil, session=session).float()
            for session in sessions
        }


def _require_finite(losses: Sequence[tuple[str, Tensor]]) -> float:
    # One copy from the device for the whole step: each would wait for everything computed before it.
    values = torch.stack([loss for _, loss in losses]).tolist() if losses else []
    for (session, _), value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"loss of {session} is {value}, but must be a number: "
                "try a lower optimizer.core_lr, or compute.precision=fp32"
            )
    return float(sum(values))


def _predict(encoder: Encoder, part: ClipBatch, compute: ComputeConfig) -> tuple[Tensor, Tensor]:
    assert part.responses is not None
    with autocast(compute, part.video.device):
        predicted = encoder(part.video, part.behavior, part.pupil, session=part.session)
    return predicted.float(), part.responses[..., -predicted.shape[2] :]


def _global_counts(encoder: Encoder, batches: Sequence[ClipBatch], ranks: Ranks) -> dict[str, int]:
    own = {batch.session: len(batch) for batch in batches}
    if ranks.world_size == 1:
        return own
    device = next(encoder.parameters()).device
    counts = torch.tensor([own.get(session, 0) for session in encoder.sessions], device=device)
    dist.all_reduce(counts)
    return {session: count for session, count in zip(encoder.sessions, counts.tolist(), strict=True) if count}


def _moments_elsewhere(own: Sequence[BatchMoments], ranks: Ranks) -> list[BatchMoments]:
    """Return the moments of the same session's clips in the other processes."""
    if ranks.world_size == 1:
        return []
    merged = own[0]
    for part in own[1:]:
        merged = merged.merge(part)
    packed = merged.pack().contiguous()
    gathered = [torch.empty_like(packed) for _ in range(ranks.world_size)]
    dist.all_gather(gathered, packed)
    return [
        BatchMoments.unpack(other)
        for rank, other in enumerate(gathered)
        if rank != ranks.rank and float(other[0, 0]) > 0
    ]
