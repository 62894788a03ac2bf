"""An ensemble on its own: predicts clips from arrays, without recordings, build folder or network."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from data.array_files import write_bytes
from data.clips import ClipBatch
from data.normalization import Normalization, NormalizationConfig
from data.recording import Recording
from ensembles.fusion import Fusion, fuse
from ensembles.manifest import MANIFEST_FILE, EnsembleManifest, FileRef, ManifestError, hash_of
from training.checkpoint import INFO_FILE, STATE_FILE
from training.device import configured, resolve_device
from training.encoders import TrainedEncoder, load_encoder
from training.inference import official_scale
from training.names import flatten, nearest
from training.predict import plan_for, predict_trial, predicted_frames
from training.scored_frames import LAST_FRAME
from training.spec import from_plain

EXPORT_FILE = "export.json"
FORMAT = 1
_OFFICIAL = "official"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedPrediction:
    """Predicted responses of one clip.

    Attributes:
        first_frame: frame of the clip that the first column belongs to.
        predicted: per response std, as the benchmark's server wants them.
    """

    first_frame: int
    predicted: Float32[np.ndarray, "n t"]


def export(root: Path, recordings: Sequence[Recording], to: Path) -> Path:
    """Write a folder that predicts without the build and the recordings.

    Checkpoints are linked, not copied, where the file system can; statistics that bring clips into the
    members' units are written once for each way of normalizing.

    Args:
        root: folder of a finished build.
        recordings: the sessions it was built for.
        to: the folder; replaced if it exists.
    """
    manifest = EnsembleManifest.read(root)
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _link(root / MANIFEST_FILE, temporary / MANIFEST_FILE)
    refs = list((manifest.scales or {}).values())
    infos = {}
    for name in manifest.used:
        checkpoint = manifest.member(name).checkpoint
        assert checkpoint is not None
        refs.append(checkpoint)
        info = Path(checkpoint.path).with_name(INFO_FILE)
        _link(root / info, temporary / info)
        infos[name] = _plain(FileRef.of(temporary / info, temporary))
    for ref in refs:
        _link(ref.verify(root), temporary / ref.path)
    content = {
        "format": FORMAT,
        "frame_shape": list(recordings[0].frame_shape),
        "normalizations": _write_normalizations(manifest, recordings, temporary),
        "infos": infos,
        "manifest": _plain(FileRef.of(temporary / MANIFEST_FILE, temporary)),
    }
    write_bytes(temporary / EXPORT_FILE, (json.dumps(content, indent=1) + "\n").encode())
    shutil.rmtree(to, ignore_errors=True)
    temporary.rename(to)
    return to


def _plain(ref: FileRef) -> dict[str, str]:
    """Return a reference as plain values."""
    return {"path": ref.path, "sha256": ref.sha256}


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copy2(source, target)


def _write_normalizations(
    manifest: EnsembleManifest, recordings: Sequence[Recording], to: Path
) -> dict[str, dict[str, dict[str, str]]]:
    configs: dict[str, NormalizationConfig | None] = {_OFFICIAL: None}
    for name in manifest.used:
        own = from_plain(manifest.member(name).spec).normalization
        configs[normalization_key(own)] = own
    refs: dict[str, dict[str, dict[str, str]]] = {}
    for key, config in configs.items():
        refs[key] = {}
        for recording in recordings:
            fitted = official_scale(recording) if config is None else Normalization.fit(recording, config)
            path = to / "normalizations" / key / f"{recording.session}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(fitted.state_dict(), path)
            refs[key][recording.session] = _plain(FileRef.of(path, to))
    return refs


def normalization_key(config: NormalizationConfig) -> str:
    """Return a short name of a way of normalizing."""
    return hash_of({name: str(value) for name, value in flatten(config).items()})[:12]


class ServedEnsemble:
    """Predicts clips of the sessions it was built for.

    Every file is compared with its hash when it is loaded, and nothing is unpickled but tensors.

    Args:
        root: folder that ``export`` wrote.
        device: "auto", "cpu", "cuda" or "cuda:K".
        max_members: load only so many members, those with the largest weights; None loads all.

    Raises:
        ManifestError: a file is missing or was changed; the message names it.
    """

    def __init__(self, root: Path, *, device: str = "auto", max_members: int | None = None) -> None:
        content = _read_export(root)
        manifest_ref = FileRef(**content["manifest"])
        manifest_ref.verify(root)
        self.manifest = EnsembleManifest.read(root)
        self._device = resolve_device(device)
        self._frame_shape = tuple(content["frame_shape"])
        self._fusion = _reduced(self.manifest.fusion(root), max_members)
        self._encoders = {
            name: self._load(root, name, FileRef(**content["infos"][name])) for name in self._fusion.members
        }
        self._normalizations = {
            (key, session): self._load_normalization(root, key, session, FileRef(**ref))
            for key, of in content["normalizations"].items()
            for session, ref in of.items()
        }

    @property
    def sessions(self) -> tuple[str, ...]:
        """The mice whose neurons can be predicted."""
        return tuple(self.manifest.data)

    def _load(self, root: Path, name: str, info: FileRef) -> TrainedEncoder:
        checkpoint = self.manifest.member(name).checkpoint
        assert checkpoint is not None
        info.verify(root)
        path = checkpoint.verify(root)
        if path.name != STATE_FILE:
            raise ManifestError(f"checkpoint of {name} is {path.name}, but must be {STATE_FILE}")
        return load_encoder(path.parent, device=self._device)

    def _load_normalization(self, root: Path, key: str, session: str, ref: FileRef) -> Normalization:
        tables = torch.load(ref.verify(root), map_location=self._device, weights_only=True)
        configs = {
            normalization_key(trained.spec.normalization): trained.spec.normalization
            for trained in self._encoders.values()
        }
        return Normalization(session, configs.get(key, NormalizationConfig(responses="raw")), tables)

    def predict(
        self,
        session: str,
        video: Shaped[np.ndarray, "..."],
        behavior: Shaped[np.ndarray, "..."],
        pupil: Shaped[np.ndarray, "..."],
    ) -> ServedPrediction:
        """Predict the responses of one mouse's neurons to a clip that starts with a trial.

        Args:
            session: the mouse.
            video: grey levels 0 to 255, ``(t h w)``.
            behavior: pupil dilation and running speed, as recorded, ``(2 t)``.
            pupil: horizontal and vertical position of the pupil's center, as recorded, ``(2 t)``.

        Raises:
            ValueError: an unknown mouse, or arrays that do not fit; the message says what must be.
        """
        if session not in self.manifest.data:
            raise ValueError(f"mouse is {session!r}{nearest(session, self.sessions)}")
        clip = self._clip(session, video, behavior, pupil)
        parts = {name: self._predict_member(name, clip) for name in self._fusion.members}
        (first, _), predicted = fuse(parts, self._fusion, session=session)
        return ServedPrediction(first_frame=first, predicted=predicted)

    def _clip(
        self,
        session: str,
        video: Shaped[np.ndarray, "..."],
        behavior: Shaped[np.ndarray, "..."],
        pupil: Shaped[np.ndarray, "..."],
    ) -> ClipBatch:
        rows, columns = self._frame_shape
        if video.ndim != 3 or video.shape[1:] != (rows, columns):
            raise ValueError(f"video is {video.shape}, but must be (frames, {rows}, {columns})")
        if video.dtype != np.uint8 and not np.issubdtype(video.dtype, np.floating):
            raise ValueError(f"video is {video.dtype}, but must be uint8 or floating, grey levels 0 to 255")
        for name, values in (("behavior", behavior), ("pupil", pupil)):
            if values.shape != (2, len(video)):
                raise ValueError(f"{name} is {values.shape}, but must be (2, {len(video)}) as video is")
            if not np.issubdtype(values.dtype, np.floating):
                raise ValueError(f"{name} is {values.dtype}, but must be floating")
        for name, values in (("video", video), ("behavior", behavior), ("pupil", pupil)):
            if not np.isfinite(values).all():
                raise ValueError(f"{name} holds NaN or infinity, but must be finite: cut padded frames off")
        return ClipBatch(
            session=session,
            video=torch.from_numpy(video[:LAST_FRAME].copy())[None, None],
            behavior=_traces(behavior),
            pupil=_traces(pupil),
            responses=None,
            trial=torch.zeros(1, dtype=torch.int64),
            start=torch.zeros(1, dtype=torch.int64),
        ).to(self._device)

    def _predict_member(
        self, name: str, clip: ClipBatch
    ) -> tuple[tuple[int, int], Float32[np.ndarray, "n t"]]:
        trained = self._encoders[name]
        spec = trained.spec
        own = self._normalizations[normalization_key(spec.normalization), clip.session]
        plan = plan_for(spec.inference, warmup_frames=trained.encoder.warmup_frames)
        frames = predicted_frames(plan, clip.num_frames, where=f"the clip of {clip.session}")
        with configured(spec.compute), torch.inference_mode():
            predicted, _ = predict_trial(
                trained.encoder,
                own(clip),
                plan,
                batch_windows=spec.inference.batch_windows,
                compute=spec.compute,
            )
            if spec.normalization.statistics == "official":
                scaled = own.to_official(predicted[None], clip.frames)
            else:
                official = self._normalizations[_OFFICIAL, clip.session]
                scaled = official.to_official(own.to_raw(predicted[None], clip.frames), clip.frames)
        return frames, scaled[0, :, slice(*frames)].cpu().numpy()


def _traces(values: Shaped[np.ndarray, "2 t"]) -> Float[Tensor, "1 2 t"]:
    return torch.from_numpy(values[:, :LAST_FRAME].astype(np.float32))[None]


def _read_export(root: Path) -> Mapping[str, Any]:
    path = root / EXPORT_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ManifestError(f"{path} cannot be read ({error}); export the ensemble again") from error
    if content.get("format") != FORMAT:
        raise ManifestError(f"format of {path} is {content.get('format')}, but this version reads {FORMAT}")
    return content


def _reduced(fusion: Fusion, max_members: int | None) -> Fusion:
    """Keep the members with the largest weights; their shares are scaled up to 1."""
    if max_members is None or max_members >= len(fusion.members):
        return fusion
    if max_members < 1:
        raise ValueError(f"max_members is {max_members}, but must be at least 1")
    mean = np.mean(list(fusion.weights.values()), axis=0)
    kept = sorted(np.argsort(-mean, kind="stable")[:max_members].tolist())
    totals = {session: sum(weights[i] for i in kept) for session, weights in fusion.weights.items()}
    return Fusion(
        members=tuple(fusion.members[i] for i in kept),
        weights={s: tuple(w[i] / totals[s] for i in kept) for s, w in fusion.weights.items()},
        scales=None if fusion.scales is None else {s: of[kept] for s, of in fusion.scales.items()},
    )
