"""One model that learns from the ensemble: its training responses are drawn towards the ensemble's.

The Poisson loss is linear in the response, so training on ``(1 - ratio) * response + ratio * predicted`` is
training on both losses with these shares. Nothing else changes: the student is a run like any other.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.array_files import write_bytes
from data.folds import split_trials
from data.recording import Frames, Recording, Tier, Trial
from ensembles.fusion import Fusion, predict_fused
from ensembles.identity import BuildError, require_same
from ensembles.manifest import EnsembleManifest
from training.checkpoint import SessionIdentity
from training.device import resolve_device
from training.encoders import load_encoder
from training.inference import official_scale, planned_predictions, score_stored, store_predictions
from training.names import with_values
from training.prediction_info import PredictionInfo
from training.predictions import Predictions, PredictionStore
from training.results import EpochReport, Outcome
from training.run import result_plain, run
from training.run_folder import write_json
from training.spec import RunSpec, from_plain, to_plain

DEFAULT_RATIO = 0.7
"""Share of the teacher; DwiseNeuro's, between single models of two stages, is 0.36."""

STUDENT = "distilled"
_TARGETS = "targets"
_RESULT = "distilled.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """A student beside its teacher, on the clips that grade.

    Attributes:
        score: of the student, single-trial correlation.
        teacher: of the ensemble.
        best_single: of the best single member.
        ratio: share of the teacher.
        unseen_share: of the taught trials, those whose teacher had not been trained on them.
        checkpoint: the student's encoder.
        train_seconds: of the student.
    """

    score: float
    teacher: float
    best_single: float
    ratio: float
    unseen_share: float
    checkpoint: str
    train_seconds: float


class TaughtRecording(Recording):
    """A recording whose responses in some trials are drawn towards a teacher's predictions.

    Args:
        recording: the session.
        targets: predictions of its trials, per response std.
        ratio: share of the teacher.
    """

    def __init__(self, recording: Recording, targets: Predictions, *, ratio: float) -> None:
        self.__dict__.update(recording.__dict__)
        self._plain, self._targets, self._ratio = recording, targets, ratio
        self._taught = frozenset(targets.info.trials)
        self._precision = official_scale(recording).precision.numpy()

    def frames(self, trial: Trial, start: int, stop: int, step: int = 1) -> Frames:
        """Return frames as ``Recording.frames``; responses of taught trials in float32, mixed."""
        plain = self._plain.frames(trial, start, stop, step)
        if plain.responses is None:
            return plain
        responses = torch.from_numpy(plain.responses.copy()).float().numpy()
        if trial.index in self._taught:
            self._mix(responses, trial, np.arange(start, stop, step))
        return replace(plain, responses=responses)

    def _mix(self, responses: np.ndarray, trial: Trial, frames: np.ndarray) -> None:
        first, stop = self._targets.info.frames[self._targets.info.trials.index(trial.index)]
        known = np.flatnonzero((frames >= first) & (frames < stop))
        if len(known) == 0:
            return
        predicted = self._targets.trial(trial.index)[:, frames[known] - first].T
        rows = np.minimum(frames[known], len(self._precision) - 1)
        raw = predicted / self._precision[rows]
        responses[known] = (1 - self._ratio) * responses[known] + self._ratio * raw

    def __reduce__(self) -> tuple[Any, ...]:
        return TaughtRecording.reopened, (self._plain, self._targets.path, self._ratio)

    @classmethod
    def reopened(cls, recording: Recording, path: Path, ratio: float) -> "TaughtRecording":
        """Open a taught recording that was sent to another process."""
        store = PredictionStore(root=path.parents[2])
        targets = store.open(path.parents[1].name, path.parent.name, path.stem)
        return cls(recording, targets, ratio=ratio)


def distill(
    root: Path,
    recordings: Sequence[Recording],
    *,
    ratio: float = DEFAULT_RATIO,
    device: str = "auto",
    settings: Mapping[str, str] | None = None,
    on_epoch: Callable[[EpochReport], None] = lambda _: None,
) -> Distilled:
    """Train one model on an ensemble's predictions and score it beside its teacher; it goes on after a kill.

    The student has the recipe of the member with the largest weight. A trial is taught by the members that
    were not trained on it where there are any (folds), else by all of them.

    Args:
        root: folder of a finished build.
        recordings: the sessions it was built for.
        ratio: share of the teacher.
        device: of the teacher; "auto", "cpu", "cuda" or "cuda:K".
        settings: hyperparameters of the student, by dotted name.
        on_epoch: called after each epoch.

    Raises:
        BuildError: the ratio is no share, the run failed, or the folder holds another student.
    """
    if not 0 <= ratio <= 1:
        raise BuildError(f"--distill is {ratio}, but must be a share of 0 to 1")
    manifest = EnsembleManifest.read(root)
    fusion = manifest.fusion(root)
    spec = _student(manifest, settings or {})
    folder = root / STUDENT
    folder.mkdir(exist_ok=True)
    identity = {
        "ratio": ratio,
        "spec": to_plain(spec),
        "teacher": {name: _sha256(manifest, name) for name in fusion.members},
        "weights": {session: list(of) for session, of in fusion.weights.items()},
    }
    require_same(folder / "student.json", identity)
    store = PredictionStore(root=folder / "predictions")
    unseen = _store_targets(root, manifest, fusion, recordings, spec, store, device=device)
    taught = [
        TaughtRecording(recording, store.open(_TARGETS, recording.session, Tier.TRAIN), ratio=ratio)
        for recording in recordings
    ]

    def tell(report: EpochReport) -> bool:
        on_epoch(report)
        return True

    result = run(spec, taught, folder / "run", on_epoch=tell)
    if result.outcome is not Outcome.FINISHED or result.checkpoint is None:
        raise BuildError(f"the student failed: {result.error}")
    write_json(folder / "run" / "result.json", result_plain(result))
    store_predictions(result.checkpoint, recordings, store, member=STUDENT, tiers=[Tier.ORACLE])
    distilled = Distilled(
        score=score_stored(store, STUDENT, recordings, Tier.ORACLE).single_trial,
        teacher=manifest.direct["single_trial"],
        best_single=manifest.scores["scores"]["best_single"]["overall"]["single_trial"]["value"],
        ratio=ratio,
        unseen_share=unseen,
        checkpoint=result.checkpoint.relative_to(root).as_posix(),
        train_seconds=result.seconds,
    )
    content = {name: getattr(distilled, name) for name in Distilled.__slots__}
    write_bytes(folder / _RESULT, (json.dumps(content, indent=1) + "\n").encode())
    return distilled


def _student(manifest: EnsembleManifest, settings: Mapping[str, str]) -> RunSpec:
    first = max(manifest.members, key=lambda member: member.weight)
    spec = from_plain(first.spec)
    if spec.loss.needs_whole_batch:
        # The correlation is not linear in the response.
        spec = with_values(spec, {"loss.correlation_weight": 0.0})
    # Statistics over responses that are mixed already would be others than those of the recording.
    fixed: dict[str, Any] = {"normalization.statistics": "official", "distillation.teacher": None}
    return with_values(spec, fixed | dict(settings))


def _sha256(manifest: EnsembleManifest, name: str) -> str:
    checkpoint = manifest.member(name).checkpoint
    assert checkpoint is not None
    return checkpoint.sha256


def _store_targets(
    root: Path,
    manifest: EnsembleManifest,
    fusion: Fusion,
    recordings: Sequence[Recording],
    spec: RunSpec,
    store: PredictionStore,
    *,
    device: str,
) -> float:
    """Predict the student's training trials; return the share whose teachers had not seen them."""
    specs = {name: from_plain(manifest.member(name).spec) for name in fusion.members}
    trained_on = {name: _indices(recordings, of) for name, of in specs.items()}
    own = split_trials(recordings, spec.split).train
    encoders = {}
    num_unseen = num_all = 0
    for recording in recordings:
        session = recording.session
        # Only the train tier: test tiers that a run trains on are not taught.
        trials = [trial for trial in own[session] if trial.tier is Tier.TRAIN]
        teachers = {trial.index: _teachers(fusion, trained_on, session, trial.index) for trial in trials}
        num_all += len(trials)
        num_unseen += sum(
            trial.index not in trained_on[names[0]][session]
            for trial in trials
            for names in [teachers[trial.index]]
        )
        info = _info(root, manifest, fusion, recording, [trial.index for trial in trials])
        if store.has(info):
            continue
        for name in fusion.members:
            if name not in encoders:
                checkpoint = manifest.member(name).checkpoint
                assert checkpoint is not None
                encoders[name] = load_encoder(checkpoint.verify(root).parent, device=resolve_device(device))
        with store.writer(info) as writer:
            missing = set(writer.missing)
            for names in sorted(set(teachers.values())):
                chosen = [t for t in trials if t.index in missing and teachers[t.index] == names]
                for one in predict_fused(_only(fusion, names), encoders, recording, chosen):
                    first, stop = info.frames[info.trials.index(one.trial.index)]
                    writer.write(
                        one.trial.index, one.predicted[:, first - one.frames[0] : stop - one.frames[0]]
                    )
    return num_unseen / num_all


def _indices(recordings: Sequence[Recording], spec: RunSpec) -> dict[str, frozenset[int]]:
    train = split_trials(recordings, spec.split).train
    return {session: frozenset(trial.index for trial in trials) for session, trials in train.items()}


def _teachers(
    fusion: Fusion, trained_on: Mapping[str, Mapping[str, frozenset[int]]], session: str, trial: int
) -> tuple[str, ...]:
    fresh = tuple(name for name in fusion.members if trial not in trained_on[name][session])
    return fresh or fusion.members


def _info(
    root: Path,
    manifest: EnsembleManifest,
    fusion: Fusion,
    recording: Recording,
    trials: Sequence[int],
) -> PredictionInfo:
    planned = []
    for name in fusion.members:
        checkpoint = manifest.member(name).checkpoint
        assert checkpoint is not None
        (info,) = planned_predictions(
            checkpoint.locate(root).parent, [recording], member=_TARGETS, tiers=[Tier.TRAIN]
        )
        planned.append(dict(zip(info.trials, info.frames, strict=True)))
    identity = SessionIdentity.of(recording)
    return PredictionInfo(
        member=_TARGETS,
        session=recording.session,
        tier=Tier.TRAIN,
        trials=tuple(trials),
        frames=tuple(
            (max(of[trial][0] for of in planned), min(of[trial][1] for of in planned)) for trial in trials
        ),
        num_neurons=identity.num_neurons,
        neurons_sha256=identity.neurons_sha256,
        fingerprint=identity.fingerprint,
        checkpoint_sha256=manifest.data_sha256,
    )


def _only(fusion: Fusion, names: tuple[str, ...]) -> Fusion:
    """Return the ensemble of some of its members, shares scaled up to 1."""
    kept = [fusion.members.index(name) for name in names]
    weights = {}
    for session, of in fusion.weights.items():
        total = sum(of[i] for i in kept)
        weights[session] = tuple(of[i] / total if total else 1 / len(kept) for i in kept)
    scales = None if fusion.scales is None else {s: of[kept] for s, of in fusion.scales.items()}
    return Fusion(members=names, weights=weights, scales=scales)
