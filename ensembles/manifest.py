"""``ensemble.json``: what an ensemble is made of, how it was chosen, what it scores, and what proves it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.array_files import write_bytes
from data.confined import parse_json, read_small
from ensembles.fusion import Fusion
from training.checkpoint import sha256_of
from training.spec import from_plain, to_plain

FORMAT = 1
MANIFEST_FILE = "ensemble.json"


class ManifestError(ValueError):
    """A manifest that cannot be read or does not hold; the message says what differs and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file of the build.

    Attributes:
        path: below the manifest's folder, with forward slashes.
        sha256: hash of its content.
    """

    path: str
    sha256: str

    def __post_init__(self) -> None:
        """Refuse paths that lead out of the build."""
        path = PurePosixPath(self.path)
        if not self.path or path.is_absolute() or ".." in path.parts or "\\" in self.path:
            raise ManifestError(f"path is {self.path!r}, but must be one below the manifest's folder")

    @classmethod
    def of(cls, path: Path, root: Path) -> "FileRef":
        """Refer to a file as it is now."""
        return cls(path=path.relative_to(root).as_posix(), sha256=sha256_of(path))

    def locate(self, root: Path) -> Path:
        """Return where the file is.

        Raises:
            ManifestError: a link on the way leads out of the build.
        """
        path = root / self.path
        if not path.resolve().is_relative_to(root.resolve()):
            raise ManifestError(f"{path} leads out of {root}, but must stay in it")
        return path

    def verify(self, root: Path) -> Path:
        """Return where the file is, after comparing its hash.

        Raises:
            ManifestError: it is missing or was changed.
        """
        path = self.locate(root)
        if not path.is_file():
            raise ManifestError(f"{path} does not exist, but {MANIFEST_FILE} names it")
        found = sha256_of(path)
        if found != self.sha256:
            raise ManifestError(
                f"sha256 of {path} is {found[:12]}..., but must be {self.sha256[:12]}...: "
                "the file was changed"
            )
        return path


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEntry:
    """One member as the manifest names it.

    Attributes:
        name: in tables and folders.
        architecture: its model family.
        seed: of its run.
        fold: its run held out.
        teacher: member it learned from.
        spec: its run, as plain values.
        config_sha256: hash of the run's settings.
        trunk_sha256: hash of what its parameters were before training; equal ones have a common start.
        checkpoint: its encoder.
        parameters: trainable, all sessions together.
        weight: its share; the mean over sessions where they differ.
        contribution: what the ensemble loses without it, by metric, with intervals; None without a weight.
        score: of the member alone, by metric, with intervals; None where it failed.
        outcome: finished or failed.
        error: why it failed.
    """

    name: str
    architecture: str
    seed: int
    fold: int | None
    teacher: str | None
    spec: Mapping[str, Any]
    config_sha256: str
    trunk_sha256: str
    checkpoint: FileRef | None
    parameters: int | None
    weight: float
    contribution: Mapping[str, Any] | None
    score: Mapping[str, Any] | None
    outcome: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataEntry:
    """One session that the ensemble was built for.

    Attributes:
        num_neurons: in the order of predictions.
        neurons_sha256: hash of the unit ids.
        fingerprint: hash of the recording's data.
        chosen_trials: hash of the indices of the trials that chose.
        reported_trials: hash of the indices of the trials that grade.
    """

    num_neurons: int
    neurons_sha256: str
    fingerprint: str
    chosen_trials: str
    reported_trials: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleManifest:
    """What an ensemble is. Two builds of one recipe give the same but for ``time``.

    Attributes:
        name: of the build.
        recipe: that made the members.
        scale: full or demo.
        members: all of the recipe, also those without a weight and those that failed.
        blend: how weights were found.
        forced: the blend was asked for, so that the gate had no say.
        weights: shares by session and member.
        scales: files of factors ``[member, neuron]`` by session, in the order of the members with a weight.
        units: of predictions.
        frames: first frame that is scored and frame behind the last.
        chosen_on: trials that chose the weights.
        reported_on: trials of all scores.
        protocol: what keeps the scores honest.
        seen_test_movies: videos that score some mouse and that a member was trained on.
        data: sessions by name.
        data_sha256: hash of ``data``.
        scores: everything that is reported, with intervals.
        direct: score of the shipped weights on the reported trials, computed from predictions alone.
        predictions: files that were averaged, by member.
        evidence: fingerprints of the evidence that chose and that reports.
        versions: of libraries, and the git commit.
        time: when it was built and how long members took; the only part that differs between two builds.
        format: version of this layout.
    """

    name: str
    recipe: str
    scale: str
    members: tuple[MemberEntry, ...]
    blend: str
    forced: bool
    weights: Mapping[str, Mapping[str, float]]
    scales: Mapping[str, FileRef] | None
    units: str
    frames: tuple[int, int]
    chosen_on: str
    reported_on: str
    protocol: str
    seen_test_movies: int
    data: Mapping[str, DataEntry]
    data_sha256: str
    scores: Mapping[str, Any]
    direct: Mapping[str, float]
    predictions: Mapping[str, tuple[FileRef, ...]]
    evidence: Mapping[str, str]
    versions: Mapping[str, str]
    time: Mapping[str, Any]
    format: int = FORMAT

    @property
    def used(self) -> tuple[str, ...]:
        """Members with a weight."""
        return tuple(member.name for member in self.members if member.weight > 0)

    def member(self, name: str) -> MemberEntry:
        """Return a member by its name."""
        return next(member for member in self.members if member.name == name)

    def fusion(self, root: Path) -> Fusion:
        """Return the weights; files of factors are checked and read.

        Args:
            root: folder of the manifest.
        """
        scales = None
        if self.scales is not None:
            scales = {
                session: np.load(ref.verify(root), allow_pickle=False) for session, ref in self.scales.items()
            }
        return Fusion(
            members=self.used,
            weights={
                session: tuple(weights[name] for name in self.used)
                for session, weights in self.weights.items()
            },
            scales=scales,
        )

    def write(self, root: Path) -> Path:
        """Write ``ensemble.json`` under a temporary name, then rename it into place."""
        path = root / MANIFEST_FILE
        text = json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False)
        write_bytes(path, (text + "\n").encode())
        return path

    @classmethod
    def read(cls, root: Path) -> "EnsembleManifest":
        """Read the manifest of a build.

        Raises:
            ManifestError: there is none, it is not one, or it has another format.
        """
        path = root / MANIFEST_FILE
        try:
            plain = parse_json(read_small(path))
            if plain["format"] != FORMAT:
                raise ManifestError(f"format of {path} is {plain['format']}, but this version reads {FORMAT}")
            if plain.keys() != {field.name for field in fields(cls)}:
                raise ManifestError(f"{path} has other entries than a manifest of format {FORMAT}")
            return cls(
                **plain
                | {
                    "members": tuple(_read_member(member) for member in plain["members"]),
                    "data": {session: DataEntry(**entry) for session, entry in plain["data"].items()},
                    "scales": _read_refs(plain["scales"]),
                    "frames": tuple(plain["frames"]),
                    "predictions": {
                        member: tuple(FileRef(**ref) for ref in refs)
                        for member, refs in plain["predictions"].items()
                    },
                }
            )
        except FileNotFoundError:
            raise ManifestError(f"{path} does not exist: {root} holds no finished build") from None
        except ManifestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{path} cannot be read as a manifest: {error!r}") from error


def _read_member(plain: Mapping[str, Any]) -> MemberEntry:
    checkpoint = plain["checkpoint"]
    return MemberEntry(**dict(plain) | {"checkpoint": None if checkpoint is None else FileRef(**checkpoint)})


def _read_refs(plain: Mapping[str, Any] | None) -> dict[str, FileRef] | None:
    return None if plain is None else {name: FileRef(**ref) for name, ref in plain.items()}


def hash_of(content: object) -> str:
    """Return the sha256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def config_hash(spec: Mapping[str, Any]) -> str:
    """Return the hash of a run's settings; where it is computed and who taught it do not count."""
    values = {
        name: value
        for name, value in spec["values"].items()
        if not name.startswith("compute.") and name != "distillation.teacher"
    }
    return hash_of(dict(spec) | {"values": values})


def trunk_hash(spec: Mapping[str, Any], data: Mapping[str, DataEntry]) -> str:
    """Return the hash of what a member's parameters were before training: model, seed and sessions."""
    run = from_plain(spec)
    model = {name: value for name, value in to_plain(run)["values"].items() if name.startswith("model.")}
    sessions = {session: entry.fingerprint for session, entry in data.items()}
    return hash_of({"family": run.family, "model": model, "seed": run.seed, "sessions": sessions})
