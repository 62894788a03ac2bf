"""Check a finished build again: hashes, data, and the scores it reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.recording import Recording, Tier
from ensembles.assessment import AGREEMENT, data_hash, gathered
from ensembles.evidence import METRICS, Evidence
from ensembles.fusion import Fusion, score_fused
from ensembles.holdout import HOLDOUT
from ensembles.manifest import EnsembleManifest, ManifestError
from training.checkpoint import SessionIdentity
from training.predictions import PredictionStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at.
        holds: whether it is as the manifest says.
        words: what was found.
    """

    check: str
    holds: bool
    words: str


def verify(root: Path, recordings: Sequence[Recording] = ()) -> list[Finding]:
    """Check a build against its manifest; every check is made, whatever the others find.

    Args:
        root: folder of the build.
        recordings: the sessions it was built for; with them the score is computed from responses and stored
            predictions again, without them from the evidence.

    Raises:
        ManifestError: there is no manifest, or it is not one.
    """
    manifest = EnsembleManifest.read(root)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("checkpoints", lambda: _checkpoints(manifest, root)),
        ("predictions", lambda: _predictions(manifest, root)),
        ("weights", lambda: _weights(manifest, root)),
        ("evidence", lambda: _evidence(manifest, root)),
        ("score from evidence", lambda: _score_from_evidence(manifest, root)),
    ]
    if recordings:
        checks += [
            ("data", lambda: _data(manifest, recordings)),
            ("score from predictions", lambda: _score_from_predictions(manifest, root, recordings)),
        ]
    return [_found(check, look) for check, look in checks]


def _found(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check=check, holds=True, words=look())
    except (ValueError, OSError) as error:
        return Finding(check=check, holds=False, words=str(error))


def _checkpoints(manifest: EnsembleManifest, root: Path) -> str:
    refs = [member.checkpoint for member in manifest.members if member.checkpoint is not None]
    for ref in refs:
        ref.verify(root)
    return f"{len(refs)} files unchanged"


def _predictions(manifest: EnsembleManifest, root: Path) -> str:
    refs = [ref for of_member in manifest.predictions.values() for ref in of_member]
    for ref in refs:
        ref.verify(root)
    return f"{len(refs)} files unchanged"


def _weights(manifest: EnsembleManifest, root: Path) -> str:
    fusion = manifest.fusion(root)
    mean = np.mean([fusion.weights[session] for session in fusion.weights], axis=0)
    for name, weight in zip(fusion.members, mean, strict=True):
        _require_close(f"weight of {name}", manifest.member(name).weight, float(weight), tolerance=1e-9)
    return f"{len(fusion.members)} members with a weight, sum 1 in each of {len(fusion.weights)} sessions"


def _evidence(manifest: EnsembleManifest, root: Path) -> str:
    for what, evidence in _opened(manifest, root).items():
        if evidence.fingerprint != manifest.evidence[what]:
            raise ManifestError(
                f"evidence {what.replace('_', ' ')} is {evidence.fingerprint[:12]}..., "
                f"but must be {manifest.evidence[what][:12]}...: it was made from other predictions"
            )
    return f"chosen on {manifest.chosen_on}, reported on {manifest.reported_on}"


def _opened(manifest: EnsembleManifest, root: Path) -> dict[str, Evidence]:
    for tier in (manifest.chosen_on, manifest.reported_on):
        if tier not in (HOLDOUT, Tier.ORACLE):
            raise ManifestError(f"tier is {tier!r}, but must be {HOLDOUT} or {Tier.ORACLE}")
    return {
        "chosen_on": Evidence.open(gathered(root, manifest.chosen_on)),
        "reported_on": Evidence.open(gathered(root, manifest.reported_on)),
    }


def _score_from_evidence(manifest: EnsembleManifest, root: Path) -> str:
    evidence = _opened(manifest, root)["reported_on"]
    fusion = manifest.fusion(root)
    weights, scales = fusion.over(evidence.members)
    words = []
    for metric in METRICS:
        found = evidence.score(weights, metric=metric, scales=scales).pooled
        _require_close(metric, manifest.direct[metric], found, tolerance=AGREEMENT)
        words.append(f"{metric} {found:.6f}")
    if manifest.protocol == "other_clips":
        for metric in METRICS:
            reported = manifest.scores["scores"]["chosen"]["overall"][metric]["value"]
            _require_close(f"reported {metric}", reported, manifest.direct[metric], tolerance=AGREEMENT)
    return ", ".join(words)


def _data(manifest: EnsembleManifest, recordings: Sequence[Recording]) -> str:
    found = {recording.session: SessionIdentity.of(recording) for recording in recordings}
    if sorted(found) != sorted(manifest.data):
        raise ManifestError(
            f"sessions are {', '.join(sorted(found))}, but must be {', '.join(sorted(manifest.data))}"
        )
    for session, entry in manifest.data.items():
        for name in ("num_neurons", "neurons_sha256", "fingerprint"):
            ours, theirs = getattr(found[session], name), getattr(entry, name)
            if ours != theirs:
                raise ManifestError(f"{name} of {session} is {ours}, but must be {theirs}: other recordings")
    if data_hash(manifest.data) != manifest.data_sha256:
        raise ManifestError("data_sha256 does not fit data: the manifest was changed")
    return f"{len(found)} sessions as they were"


def _score_from_predictions(manifest: EnsembleManifest, root: Path, recordings: Sequence[Recording]) -> str:
    fusion: Fusion = manifest.fusion(root)
    score = score_fused(
        fusion, PredictionStore(root=root / "predictions"), recordings, tier=manifest.reported_on
    )
    for metric in METRICS:
        _require_close(metric, manifest.direct[metric], getattr(score, metric), tolerance=1e-9)
    return f"single_trial {score.single_trial:.6f}, to_average {score.to_average:.6f}"


def _require_close(what: str, stated: float, found: float, *, tolerance: float) -> None:
    if not abs(stated - found) <= tolerance:
        raise ManifestError(f"{what} is {found:.8f}, but the manifest states {stated:.8f}")
