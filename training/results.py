"""What a run says while it trains and when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from training.spec import RunSpec


class Outcome(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    PRUNED = "pruned"
    FAILED = "failed"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One finished optimizer step.

    Attributes:
        epoch: counted from 1.
        step: finished steps of this epoch.
        num_steps: steps of an epoch.
        loss: mean training loss per neuron and frame over the epoch so far.
        clips_per_second: training clips over training time of the epoch so far.
    """

    epoch: int
    step: int
    num_steps: int
    loss: float
    clips_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """One finished epoch.

    Attributes:
        epoch: counted from 1.
        loss: mean training loss per neuron and frame (without scaling and regularizer).
        score: hold-out score, single-trial correlation pooled over neurons.
        score_by_session: the same for each session.
        best_score: best so far, this epoch included.
        rate: learning rate of the core at the end of the epoch.
        seconds: wall time of the epoch, training and scoring.
        clips_per_second: training clips over training time.
        peak_memory_bytes: highest memory of the process (CPU) or the device (CUDA) so far.
    """

    epoch: int
    loss: float
    score: float
    score_by_session: Mapping[str, float]
    best_score: float
    rate: float
    seconds: float
    clips_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What is left of a run.

    Attributes:
        run_id: name of the run and of its folder.
        spec: what was run.
        outcome: how it ended; only a finished or pruned run has a score.
        score: hold-out score of the kept checkpoint.
        score_by_session: the same for each session.
        epochs: epochs trained.
        seconds: wall time.
        checkpoint: folder of the kept checkpoint.
        error: why it failed, in words.
    """

    run_id: str
    spec: RunSpec
    outcome: Outcome
    score: float | None
    score_by_session: Mapping[str, float]
    epochs: int
    seconds: float
    checkpoint: Path | None
    error: str | None
