"""A build from plan to predictions: what is missing is made, and who failed is told with the reason."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.recording import Recording, Tier
from ensembles.heads import extract_head
from ensembles.identity import BuildError
from ensembles.making import trained_before
from ensembles.members import Executor, Member, MemberJob, MemberResult, in_waves
from ensembles.plan import BuildPlan
from training.names import with_values
from training.results import EpochReport, Outcome
from training.spec import RunSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Who is told what happens; every field may do nothing.

    Attributes:
        started: members that begin, in one wave.
        epoch: member and its epoch.
        ended: how a member ended.
        phase: what is done now, in words.
    """

    started: Callable[[Sequence[Member]], None] = lambda _: None
    epoch: Callable[[str, EpochReport], None] = lambda _name, _report: None
    ended: Callable[[MemberResult], None] = lambda _: None
    phase: Callable[[str], None] = lambda _: None


def make_members(
    plan: BuildPlan,
    recordings: Sequence[Recording],
    executor: Executor,
    *,
    progress: Progress,
    threads: int = 1,
) -> list[MemberResult]:
    """Make all members of a build: train what is not trained, predict what is not predicted.

    Args:
        plan: of the build.
        recordings: the sessions, all of one store.
        executor: makes them.
        progress: is told.
        threads: of the CPU, for each member.

    Returns:
        How each of them ended, in the order of the plan.

    Raises:
        BuildError: a member failed and the plan says to stop, or none is usable.
    """
    holdout = plan.holdout(recordings)
    trials = tuple((name, tuple(trial.index for trial in of)) for name, of in holdout.items() if of)
    results: dict[str, MemberResult] = {}
    for wave in in_waves(plan.members):
        jobs = []
        for member in wave:
            try:
                ready = _ready(member, results, plan)
            except BuildError as error:
                failed = MemberResult(name=member.name, outcome=Outcome.FAILED, error=str(error))
                _note(failed, results, plan, progress)
                continue
            jobs.append(
                MemberJob(
                    member=ready,
                    folder=plan.member_folder(member.name),
                    store=recordings[0].store,
                    sessions=tuple(recording.session for recording in recordings),
                    predictions=plan.predictions,
                    tiers=(Tier.ORACLE,) if member.is_pooled else (),
                    holdout=trials if member.is_pooled else (),
                    threads=threads,
                )
            )
        progress.started([job.member for job in jobs])
        for result in executor(jobs, progress.epoch):
            _note(result, results, plan, progress)
    if not any(results[member.name].is_usable for member in plan.members if member.is_pooled):
        reasons = "; ".join(f"{result.name}: {result.error}" for result in results.values())
        raise BuildError(f"no member is usable ({reasons})")
    return [results[member.name] for member in plan.members]


def _ready(member: Member, results: dict[str, MemberResult], plan: BuildPlan) -> Member:
    """Return the member with what it needs of others: its teacher's checkpoint, or its own, cut out."""
    if member.teacher is not None:
        checkpoint = _checkpoint(member.teacher, results, role="teacher")
        member = replace(member, spec=taught_by(member.spec, checkpoint))
    if member.trunk is not None:
        checkpoint = _checkpoint(member.trunk, results, role="trunk")
        source = extract_head(checkpoint, member.spec, plan.folder / "heads" / member.name)
        member = replace(member, source=source)
    return member


def _checkpoint(name: str, results: dict[str, MemberResult], *, role: str) -> Path:
    checkpoint = results[name].checkpoint
    if checkpoint is None:
        raise BuildError(f"its {role} {name} failed")
    return checkpoint


def taught_by(spec: RunSpec, checkpoint: Path) -> RunSpec:
    """Return a run that learns from the encoder of a checkpoint."""
    return with_values(spec, {"distillation.teacher": str(checkpoint)})


def _note(
    result: MemberResult, results: dict[str, MemberResult], plan: BuildPlan, progress: Progress
) -> None:
    results[result.name] = result
    progress.ended(result)
    if not result.is_usable and plan.on_failure == "stop":
        raise BuildError(f"member {result.name} failed ({result.error}), and --on-failure is stop")


def missing_members(plan: BuildPlan) -> list[Member]:
    """Return the members that are still to be trained."""
    return [
        member
        for member in plan.members
        if member.source is None
        and member.trunk is None
        and trained_before(plan.member_folder(member.name)) is None
    ]
