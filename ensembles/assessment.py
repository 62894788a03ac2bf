"""From stored predictions to weights, scores and the manifest: everything after the members are made."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.array_files import write_array
from data.folds import Trials, select_trials
from data.recording import Recording, Tier
from ensembles.analysis import Analysis
from ensembles.builder import Progress
from ensembles.costs import COST_UNIT, member_costs, num_parameters
from ensembles.diagnostics import analyze
from ensembles.evidence import METRICS, Evidence
from ensembles.evidence_pass import gather
from ensembles.fusion import Fusion, score_fused
from ensembles.gate import choose
from ensembles.holdout import HOLDOUT
from ensembles.manifest import (
    MANIFEST_FILE,
    DataEntry,
    EnsembleManifest,
    FileRef,
    ManifestError,
    MemberEntry,
    config_hash,
    hash_of,
    trunk_hash,
)
from ensembles.members import Member, MemberResult
from ensembles.plan import BuildPlan, architectures
from ensembles.report import write_report
from training.checkpoint import STATE_FILE, SessionIdentity
from training.prediction_info import RESPONSE_STD
from training.predictions import PredictionStore
from training.run import versions
from training.scored_frames import BURN_IN_FRAMES, LAST_FRAME
from training.spec import to_plain

AGREEMENT = 1e-5
"""Evidence and the score of the predictions themselves may differ by this."""

REPORT_FOLDER = "report"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assessment:
    """What is known of a finished build.

    Attributes:
        analysis: everything that is reported.
        manifest: as it was written.
        report: the page.
    """

    analysis: Analysis
    manifest: EnsembleManifest
    report: Path


def assess(
    plan: BuildPlan,
    recordings: Sequence[Recording],
    results: Sequence[MemberResult],
    *,
    progress: Progress,
    threads: int = 2,
) -> Assessment:
    """Choose weights, score them on clips that chose nothing, and write report and manifest.

    Args:
        plan: of the build.
        recordings: the sessions.
        results: how the members ended; those that failed are left out and named.
        progress: is told.
        threads: of the pass over the predictions.
    """
    made = {result.name for result in results if result.is_usable}
    members = [member for member in plan.members if member.is_pooled and member.name in made]
    usable = [member.name for member in members]
    progress.phase(f"reading the predictions of {len(members)} members")
    choose_on, report_on = gather_evidence(plan, recordings, usable, threads=threads)
    choice = choose(choose_on, blend=plan.blend, groups=architectures(members))
    progress.phase(f"scoring {choice.blend} of {len(choice.used)} members")
    analysis = analyze(
        choice,
        choose_on=choose_on,
        report_on=report_on,
        recordings=recordings,
        groups=architectures(members),
        costs=member_costs(plan.members, recordings),
        cost_unit=COST_UNIT,
    )
    fusion = Fusion.of(choice)
    direct = direct_score(plan, recordings, fusion, report_on)
    report = write_report(analysis, plan.folder / REPORT_FOLDER, title=plan.name)
    manifest = _manifest(
        plan, recordings, results, analysis=analysis, fusion=fusion, direct=direct,
        evidence={"chosen_on": choose_on.fingerprint, "reported_on": report_on.fingerprint},
    )  # fmt: skip
    manifest.write(plan.folder)
    return Assessment(analysis=analysis, manifest=manifest, report=report)


def gather_evidence(
    plan: BuildPlan, recordings: Sequence[Recording], members: Sequence[str], *, threads: int
) -> tuple[Evidence, Evidence]:
    """Return the evidence that chooses and the evidence that reports; one for both without a hold-out."""
    store = PredictionStore(root=plan.predictions)

    def of(tier: str) -> Evidence:
        folder = gathered(plan.folder, tier)
        return gather(store, members, recordings, tier=tier, folder=folder, threads=threads)

    report_on = of(Tier.ORACLE)
    has_holdout = all(plan.holdout(recordings).values())
    return (of(HOLDOUT) if has_holdout else report_on), report_on


def gathered(root: Path, tier: str) -> Path:
    """Return the folder of the evidence of a tier in a build."""
    return root / "evidence" / tier


def direct_score(
    plan: BuildPlan, recordings: Sequence[Recording], fusion: Fusion, report_on: Evidence
) -> dict[str, float]:
    """Return the score of what is shipped, from predictions alone; it must agree with the evidence.

    Raises:
        ManifestError: it does not.
    """
    score = score_fused(fusion, PredictionStore(root=plan.predictions), recordings, tier=report_on.tier)
    direct = {"single_trial": score.single_trial, "to_average": score.to_average}
    weights, scales = fusion.over(report_on.members)
    for metric in METRICS:
        known = report_on.score(weights, metric=metric, scales=scales).pooled
        if abs(known - direct[metric]) > AGREEMENT:
            raise ManifestError(
                f"{metric} of the ensemble is {direct[metric]:.6f} by its predictions and {known:.6f} by the "
                f"evidence, but both must be the same: remove {report_on.folder} and build again"
            )
    return direct


def _manifest(
    plan: BuildPlan,
    recordings: Sequence[Recording],
    results: Sequence[MemberResult],
    *,
    analysis: Analysis,
    fusion: Fusion,
    direct: Mapping[str, float],
    evidence: Mapping[str, str],
) -> EnsembleManifest:
    scores = analysis.to_plain()
    data = data_entries(recordings, plan.holdout(recordings))
    by_name = {result.name: result for result in results}
    scored = {entry["member"]: entry for entry in scores["members"]}
    members = tuple(
        _member_entry(plan, member, by_name[member.name], scored.get(member.name), recordings, data)
        for member in plan.members
    )
    return EnsembleManifest(
        name=plan.name,
        recipe=plan.recipe,
        scale=plan.scale,
        members=members,
        blend=analysis.choice.blend,
        forced=analysis.choice.forced,
        weights={
            session: dict(zip(fusion.members, weights, strict=True))
            for session, weights in fusion.weights.items()
        },
        scales=_write_scales(plan.folder, fusion),
        units=RESPONSE_STD,
        frames=(BURN_IN_FRAMES, LAST_FRAME),
        chosen_on=analysis.chosen_on,
        reported_on=analysis.reported_on,
        protocol=analysis.protocol,
        seen_test_movies=len(plan.seen_test_movies(recordings)),
        data=data,
        data_sha256=data_hash(data),
        scores=scores,
        direct=dict(direct),
        predictions=_prediction_refs(plan, [result.name for result in results if result.is_usable]),
        evidence=dict(evidence),
        versions=versions(),
        time=_times(results),
    )


def _member_entry(
    plan: BuildPlan,
    member: Member,
    result: MemberResult,
    scored: Mapping[str, Any] | None,
    recordings: Sequence[Recording],
    data: Mapping[str, DataEntry],
) -> MemberEntry:
    spec = to_plain(member.spec)
    return MemberEntry(
        name=member.name,
        architecture=member.architecture,
        seed=member.spec.seed,
        fold=member.spec.split.fold,
        teacher=member.teacher,
        spec=spec,
        config_sha256=config_hash(spec),
        trunk_sha256=trunk_hash(spec, data),
        checkpoint=None
        if result.checkpoint is None
        else FileRef.of(result.checkpoint / STATE_FILE, plan.folder),
        parameters=num_parameters(member, recordings) if result.is_usable else None,
        weight=0.0 if scored is None else scored["weight"],
        contribution=None if scored is None else scored["contribution"],
        score=None if scored is None else scored["score"],
        outcome=str(result.outcome),
        error=result.error,
    )


def data_entries(recordings: Sequence[Recording], holdout: Trials) -> dict[str, DataEntry]:
    """Return what identifies the data of a build, by session."""
    oracle = select_trials(recordings, [Tier.ORACLE])
    chosen = holdout if all(holdout.values()) else oracle
    entries = {}
    for recording in recordings:
        identity = SessionIdentity.of(recording)
        entries[recording.session] = DataEntry(
            num_neurons=identity.num_neurons,
            neurons_sha256=identity.neurons_sha256,
            fingerprint=identity.fingerprint,
            chosen_trials=hash_of([trial.index for trial in chosen[recording.session]]),
            reported_trials=hash_of([trial.index for trial in oracle[recording.session]]),
        )
    return entries


def data_hash(data: Mapping[str, DataEntry]) -> str:
    """Return the hash of the data that grades: only scores on the same are comparable."""
    return hash_of(
        {session: [entry.fingerprint, entry.reported_trials] for session, entry in sorted(data.items())}
    )


def _write_scales(folder: Path, fusion: Fusion) -> dict[str, FileRef] | None:
    if fusion.scales is None:
        return None
    (folder / "scales").mkdir(exist_ok=True)
    refs = {}
    for session, factors in fusion.scales.items():
        path = folder / "scales" / f"{session}.npy"
        write_array(path, np.asarray(factors, np.float32))
        refs[session] = FileRef.of(path, folder)
    return refs


def _prediction_refs(plan: BuildPlan, members: Sequence[str]) -> dict[str, tuple[FileRef, ...]]:
    store = PredictionStore(root=plan.predictions)
    refs: dict[str, tuple[FileRef, ...]] = {}
    for info in store.infos():
        if info.member in members and info.tier in (HOLDOUT, Tier.ORACLE):
            file = store.open(info.member, info.session, info.tier)
            ref = FileRef(path=file.path.relative_to(plan.folder).as_posix(), sha256=file.sha256)
            refs[info.member] = (*refs.get(info.member, ()), ref)
    return refs


def _times(results: Sequence[MemberResult]) -> dict[str, Any]:
    return {
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "members": {
            result.name: {
                "train_seconds": round(result.train_seconds, 3),
                "predict_seconds_per_trial": result.predict_seconds,
            }
            for result in results
        },
    }


__all__ = [
    "MANIFEST_FILE",
    "Assessment",
    "assess",
    "data_entries",
    "data_hash",
    "gathered",
]
