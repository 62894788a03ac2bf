"""What a run would take, before it starts: parameters, memory, arithmetic, steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.folds import split_trials
from data.recording import Recording
from data.sampling import count_steps
from models.cost import estimate_cost
from training.device import resolve_device
from training.micro_batch import fitting_micro_batch, free_memory_bytes
from training.spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would take.

    Attributes:
        device: where it would compute.
        parameters: trainable ones, all sessions together.
        step_clips: clips of an optimizer step, all sessions together.
        micro_batch: clips of a session computed at once.
        flops: floating-point operations of a step's forward passes; backward takes about twice as many.
        peak_bytes: most memory of a training step.
        free_bytes: memory that is free there now.
        steps_per_epoch: optimizer steps.
        training: training trials of each session.
        held_out: trials of each session that choose.
    """

    device: str
    parameters: int
    step_clips: int
    micro_batch: int
    flops: int
    peak_bytes: int
    free_bytes: int
    steps_per_epoch: int
    training: dict[str, int]
    held_out: dict[str, int]


def forecast(spec: RunSpec, recordings: Sequence[Recording]) -> Forecast:
    """Work out what a run would take; its encoder is not built.

    Raises:
        ValueError: the run does not fit the recordings.
    """
    split = split_trials(recordings, spec.split)
    neurons = {recording.session: len(recording.neurons.ids) for recording in recordings}
    device = resolve_device(spec.compute.device)
    micro_batch = min(
        fitting_micro_batch(spec, neurons, recordings[0].frame_shape, device=device), spec.loader.batch_size
    )
    cost = estimate_cost(
        spec.model,
        neurons,
        (micro_batch, spec.loader.clip_frames, *recordings[0].frame_shape),
        training=True,
        dtype="float32" if spec.compute.precision == "fp32" else "bfloat16",
    )
    batches = len(recordings) if spec.loader.order == "round" else 1
    step_clips = batches * spec.loader.batch_size
    return Forecast(
        device=str(device),
        parameters=cost.parameters,
        step_clips=step_clips,
        micro_batch=micro_batch,
        flops=cost.flops * step_clips // micro_batch,
        peak_bytes=cost.peak_bytes,
        free_bytes=free_memory_bytes(device),
        steps_per_epoch=count_steps([len(trials) for trials in split.train.values()], spec.loader),
        training={session: len(trials) for session, trials in split.train.items()},
        held_out={session: len(trials) for session, trials in split.held_out.items()},
    )
