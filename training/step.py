"""One optimizer step's gradient: from micro-batches and processes, yet that of the whole batch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from data.clips import ClipBatch
from models.encoder import Encoder
from training.device import ComputeConfig, autocast
from training.distillation import distilled_loss, pair_weights
from training.joint import cut_parts, own_pairs, own_responses, predict_all, predict_own
from training.losses import BatchMoments, LossConfig, clip_loss, loss_scale
from training.micro_batch import SharedOutOfMemoryError, is_out_of_memory
from training.ranks import Ranks, is_any


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
        micro_batch: clips computed at once, of a session or (``joint``) of the whole step.
        joint: clips of all sessions pass the core together, so that batch norm sees the mixed batch.
        ranks: this process among the others.
        scale_up: multiplies the loss before the backward pass (fp16); 1 otherwise.
        teacher: encoder that predicts the targets of the sessions that were not shown a clip.
        teacher_ratio: share of the loss's weight that goes to them.
    """

    loss: LossConfig
    compute: ComputeConfig
    num_trials: Mapping[str, int]
    micro_batch: int
    joint: bool = False
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
        NonFiniteLossError: a loss is NaN or infinite; with several processes the sum over them tells it.
        SharedOutOfMemoryError: one of several processes is out of memory; all raise it. A process alone
            raises what it met.
    """
    sum_ = LossSum()
    exchange = _MomentExchange(encoder, config)
    losses: list[tuple[str, Tensor]] = []
    counts = _global_counts(encoder, batches, config.ranks)
    step_clips = sum(counts.values())
    scales = {
        batch.session: loss_scale(
            config.loss,
            num_trials=config.num_trials[batch.session],
            session_clips=counts[batch.session],
            step_clips=step_clips,
        )
        for batch in batches
    }
    for group in [list(batches)] if config.joint else [[batch] for batch in batches]:
        if exchange.passes_over(group[0]):
            continue
        with exchange.watching(group[0]):
            if config.teacher is not None:
                losses += _accumulate_taught(
                    encoder, group, config, config.teacher, step_clips=step_clips, seed=seed, sum_=sum_
                )
            elif config.joint:
                losses += _accumulate_joint(encoder, group, config, scales=scales, seed=seed, sum_=sum_)
            else:
                scale = scales[group[0].session]
                loss = _accumulate_batch(
                    encoder, group[0], config, exchange, scale=scale, seed=seed, sum_=sum_
                )
                losses.append((group[0].session, loss / scale))
    exchange.end()
    # The penalty belongs to the step, not to a process: gradients are summed over processes.
    penalty = encoder.regularizer()
    if penalty.requires_grad and config.ranks.is_first:
        config.scale_up(penalty).backward()
    sum_.total = _total(losses, ranks=config.ranks)
    return sum_


def _accumulate_batch(
    encoder: Encoder,
    batch: ClipBatch,
    config: GradientConfig,
    exchange: "_MomentExchange",
    *,
    scale: float,
    seed: tuple[int, ...],
    sum_: LossSum,
) -> Tensor:
    size = config.micro_batch
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
        remote = exchange.elsewhere(moments)
    total = batch.behavior.new_zeros(())
    for index in range(len(parts)):
        predicted, responses = predict(index)
        others: list[BatchMoments] = []
        if two_passes:
            others = moments[:index] + moments[index + 1 :] + remote
        elif config.loss.needs_whole_batch:
            with torch.no_grad():
                others = exchange.elsewhere([BatchMoments.of(predicted, responses)])
        # An encoder with several heads has the mean of their losses.
        heads = len(predicted) // len(parts[index])
        loss = clip_loss(predicted, responses, config.loss, scale=scale / heads, others=others)
        config.scale_up(loss).backward()
        total += loss.detach()
        sum_.count += predicted.numel() // heads
        sum_.clips += len(parts[index])
    return total


def _accumulate_joint(
    encoder: Encoder,
    batches: Sequence[ClipBatch],
    config: GradientConfig,
    *,
    scales: Mapping[str, float],
    seed: tuple[int, ...],
    sum_: LossSum,
) -> list[tuple[str, Tensor]]:
    """Accumulate the gradient of clips of several sessions that pass the core together."""
    losses = []
    for index, part in enumerate(cut_parts(batches, config.micro_batch)):
        torch.manual_seed(seed_for(*seed, index))
        total = part[0].behavior.new_zeros(())
        for clips, (predicted, responses) in zip(
            part, predict_own(encoder, part, config.compute), strict=True
        ):
            scale = scales[clips.session]
            loss = clip_loss(predicted, responses, config.loss, scale=scale, others=[])
            losses.append((clips.session, loss.detach() / scale))
            total = total + loss
            sum_.count += predicted.numel()
            sum_.clips += len(clips)
        config.scale_up(total).backward()
    return losses


def _accumulate_taught(
    encoder: Encoder,
    batches: Sequence[ClipBatch],
    config: GradientConfig,
    teacher: Encoder,
    *,
    step_clips: int,
    seed: tuple[int, ...],
    sum_: LossSum,
) -> list[tuple[str, Tensor]]:
    """Accumulate the gradient of recorded and taught responses (DwiseNeuro, stage 2)."""
    sessions = encoder.sessions
    # Every clip of the step has one recorded session, so weights depend only on whether a pair is recorded.
    step_own = torch.zeros(step_clips, len(sessions), dtype=torch.bool)
    step_own[:, 0] = True
    recorded, *missing = pair_weights(step_own, ratio=config.teacher_ratio)[0].tolist()
    losses = []
    first = sessions.index(batches[0].session)
    for index, part in enumerate(cut_parts(batches, config.micro_batch)):
        torch.manual_seed(seed_for(*seed, first, index))
        predicted = predict_all(encoder, part, config.compute, sessions=sessions)
        with torch.no_grad():
            taught = predict_all(teacher, part, config.compute, sessions=sessions)
        own = own_pairs(part, sessions)
        loss = distilled_loss(
            predicted,
            taught,
            own_responses(part, num_frames=predicted[part[0].session].shape[2]),
            own=own,
            weights=torch.full(own.shape, missing[0] if missing else 0.0, device=own.device).masked_fill(
                own, recorded
            ),
            loss=config.loss,
        )
        config.scale_up(loss).backward()
        losses.append((part[0].session, loss.detach() * step_clips))
        for clips in part:
            sum_.count += len(clips) * predicted[clips.session][0].numel()
            sum_.clips += len(clips)
    return losses


def _total(losses: Sequence[tuple[str, Tensor]], *, ranks: Ranks) -> float:
    # One copy from the device for the whole step: each would wait for everything computed before it.
    values = torch.stack([loss for _, loss in losses]).tolist() if losses else []
    for (session, _), value in zip(losses, values, strict=True):
        # One of several processes must not leave the others waiting: they see it in the sum.
        if not math.isfinite(value) and ranks.world_size == 1:
            raise NonFiniteLossError(
                f"loss of {session} is {value}, but must be a number: "
                "try a lower optimizer.core_lr, or compute.precision=fp32"
            )
    return float(sum(values))


def _predict(encoder: Encoder, part: ClipBatch, compute: ComputeConfig) -> tuple[Tensor, Tensor]:
    assert part.responses is not None
    with autocast(compute, part.video.device):
        by_head = encoder.rates_by_head(part.video, part.behavior, part.pupil, session=part.session)
    responses = part.responses[..., -by_head.shape[3] :]
    if len(by_head) > 1:
        responses = responses.repeat(len(by_head), 1, 1)
    return by_head.flatten(0, 1).float(), responses


def _global_counts(encoder: Encoder, batches: Sequence[ClipBatch], ranks: Ranks) -> dict[str, int]:
    own = {batch.session: len(batch) for batch in batches}
    if ranks.world_size == 1:
        return own
    device = next(encoder.parameters()).device
    counts = torch.tensor([own.get(session, 0) for session in encoder.sessions], device=device)
    dist.all_reduce(counts)
    return {session: count for session, count in zip(encoder.sessions, counts.tolist(), strict=True) if count}


class _MomentExchange:
    """What processes tell each other in mid-step: moments of a session's clips, or that memory ran out.

    A process that is out of memory keeps its part of every exchange until all of them know.
    """

    def __init__(self, encoder: Encoder, config: GradientConfig) -> None:
        self._ranks = config.ranks
        self._device = next(encoder.parameters()).device
        self._is_used = config.loss.needs_whole_batch and config.ranks.world_size > 1
        self._out_of_memory = False
        self._has_met = False

    @contextmanager
    def watching(self, batch: ClipBatch) -> Iterator[None]:
        """Compute a batch, and note when there is not enough memory for it."""
        self._has_met = False
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            is_known = isinstance(error, SharedOutOfMemoryError)
            if is_known or self._ranks.world_size == 1 or not is_out_of_memory(error):
                raise
            self._out_of_memory = True
        if self._out_of_memory and not self._has_met:
            self._give_up(batch)

    def passes_over(self, batch: ClipBatch) -> bool:
        """Tell whether a batch need not be computed, because an earlier one did not fit."""
        if self._out_of_memory:
            self._give_up(batch)
        return self._out_of_memory

    def _give_up(self, batch: ClipBatch) -> None:
        if self._is_used:
            assert batch.responses is not None
            self._gather(torch.full((6, batch.responses.shape[1]), -1.0, device=self._device))

    def end(self) -> None:
        """Agree on whether every process had enough memory."""
        if is_any(self._out_of_memory, ranks=self._ranks, device=self._device):
            raise SharedOutOfMemoryError("a process of the run is out of memory")

    def elsewhere(self, own: Sequence[BatchMoments]) -> list[BatchMoments]:
        """Return the moments of the same session's clips in the other processes."""
        if not self._is_used:
            return []
        merged = own[0]
        for part in own[1:]:
            merged = merged.merge(part)
        self._has_met = True
        gathered = self._gather(merged.pack().contiguous())
        return [BatchMoments.unpack(other) for rank, other in enumerate(gathered) if rank != self._ranks.rank]

    def _gather(self, packed: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(packed) for _ in range(self._ranks.world_size)]
        dist.all_gather(gathered, packed)
        if any(float(other[0, 0]) < 0 for other in gathered):
            raise SharedOutOfMemoryError("a process of the run is out of memory")
        return gathered
