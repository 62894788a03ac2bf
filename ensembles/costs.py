"""What members cost: floating-point operations to predict a trial, and parameters."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

from data.recording import Recording, Tier
from data.windows import WindowPlan
from ensembles.members import Member
from models.cost import Cost, estimate_cost
from models.encoder import ModelConfig
from training.predict import plan_for
from training.scored_frames import LAST_FRAME

COST_UNIT = "GFLOP per trial"


def member_costs(members: Sequence[Member], recordings: Sequence[Recording]) -> dict[str, float]:
    """Return the GFLOP that each member needs to predict one oracle trial, by its own windows.

    It is counted, not measured, so that two builds give the same. Heads of one trunk share its cost.
    """
    trial = next(trial for trial in recordings[0].trials if trial.tier is Tier.ORACLE)
    num_frames = min(trial.num_frames, LAST_FRAME)
    costs = {
        member.name: _gflop(member, recordings, num_frames) for member in members if member.trunk is None
    }
    num_heads = Counter(member.trunk for member in members)
    return costs | {
        member.name: costs[member.trunk] / num_heads[member.trunk]
        for member in members
        if member.trunk is not None
    }


def num_parameters(member: Member, recordings: Sequence[Recording]) -> int:
    """Return the trainable parameters of a member, all sessions together."""
    return _cost_of(member.spec.model, member.spec.loader.clip_frames, recordings).parameters


def _gflop(member: Member, recordings: Sequence[Recording], num_frames: int) -> float:
    model = member.spec.model
    plan: WindowPlan = plan_for(member.spec.inference, warmup_frames=model.warmup_frames)
    windows = plan.windows(num_frames)
    return sum(_cost_of(model, window.length, recordings).flops for window in windows) / 1e9


def _cost_of(model: ModelConfig, num_frames: int, recordings: Sequence[Recording]) -> Cost:
    neurons = tuple((recording.session, len(recording.neurons.ids)) for recording in recordings)
    # Frozen dataclasses are hashable, which the protocol cannot say.
    return _cost(model, num_frames, neurons, recordings[0].frame_shape)  # type: ignore[arg-type]


@cache
def _cost(
    model: ModelConfig, num_frames: int, neurons: tuple[tuple[str, int], ...], frame_shape: tuple[int, int]
) -> Cost:
    return estimate_cost(model, dict(neurons), (1, num_frames, *frame_shape), training=False)
