"""What a build is made of, from its command line: members, hold-out, folder, where members are made."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.folds import Trials
from data.recording import Recording, Tier
from ensembles.cluster import ClusterConfig
from ensembles.holdout import common_holdout, seen_test_movies
from ensembles.identity import require_same
from ensembles.members import Member
from ensembles.recipes import RecipeOptions, make_members
from training.checkpoint import SessionIdentity, check_sessions, read_info
from training.recipes import Scale
from training.settings import read_pairs
from training.spec import to_plain

IDENTITY_FILE = "build.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Everything a build needs to know before it starts.

    Attributes:
        folder: of the build.
        recipe: its name, with the words behind it.
        scale: full or demo.
        members: in the order of the recipe.
        blend: how members shall be weighted; None lets the gate decide.
        on_failure: what a failed member does to the build.
    """

    folder: Path
    recipe: str
    scale: Scale
    members: tuple[Member, ...]
    blend: str | None = None
    on_failure: str = "continue"

    @property
    def name(self) -> str:
        """Name of the build."""
        return self.folder.name

    def member_folder(self, name: str) -> Path:
        """Return the run folder of a member."""
        return self.folder / "members" / name

    @property
    def predictions(self) -> Path:
        """Folder of the prediction store."""
        return self.folder / "predictions"

    def identity(self, recordings: Sequence[Recording]) -> dict[str, Any]:
        """Return what the build's members depend on; it is gone on with only where that is the same."""
        return {
            "recipe": self.recipe,
            "scale": self.scale,
            "members": {member.name: _described(member) for member in self.members},
            "recordings": {recording.session: recording.fingerprint for recording in recordings},
        }

    def claim(self, recordings: Sequence[Recording]) -> None:
        """Note what the folder is for, or compare with what it was made for.

        Raises:
            BuildError: the folder holds another build.
        """
        require_same(self.folder / IDENTITY_FILE, self.identity(recordings))

    def holdout(self, recordings: Sequence[Recording]) -> Trials:
        """Return the trials that no member was trained on, by session; all empty unless each has some."""
        return common_holdout([member.spec for member in self.members], recordings)

    def seen_test_movies(self, recordings: Sequence[Recording]) -> frozenset[str]:
        """Return the videos that score some mouse and that a member was trained on."""
        return seen_test_movies([member.spec for member in self.members], recordings)

    def check(self, recordings: Sequence[Recording]) -> None:
        """Refuse recordings that cannot be trained on, graded with, or that are not those of existing runs.

        Raises:
            ValueError: says what differs.
        """
        for member in self.members:
            if member.source is not None:
                _require_same_data(member, recordings)
        without = [r.session for r in recordings if not any(t.tier is Tier.ORACLE for t in r.trials)]
        if without:
            raise ValueError(f"{', '.join(without)} has no oracle trials, but every session must be graded")


def _described(member: Member) -> dict[str, Any]:
    source = None if member.source is None else read_info(member.source).sha256
    return {
        "spec": to_plain(member.spec),
        "checkpoint": source,
        "teacher": member.teacher,
        "trunk": member.trunk,
    }


def _require_same_data(member: Member, recordings: Sequence[Recording]) -> None:
    assert member.source is not None
    info = read_info(member.source)
    check_sessions(info, recordings, source=member.source)
    trained_on = {session.session: session.fingerprint for session in info.sessions}
    for recording in recordings:
        found = SessionIdentity.of(recording).fingerprint
        if trained_on[recording.session] != found:
            raise ValueError(
                f"fingerprint of {recording.session} is {found[:12]}, but member {member.name} was trained "
                f"on {trained_on[recording.session][:12]}: give the recordings it was trained on"
            )


def make_plan(parsed: argparse.Namespace) -> BuildPlan:
    """Read a build from its parsed command line.

    Raises:
        ValueError: something does not exist, or the options do not fit the recipe.
    """
    scale: Scale = parsed.scale or default_scale(parsed.recordings)
    options = RecipeOptions(
        arguments=tuple(parsed.arguments),
        scale=scale,
        settings=read_pairs(parsed.set),
        seeds=parsed.seeds,
        top=parsed.top,
        subset=parsed.subset,
        root=parsed.root,
    )
    members = make_members(parsed.recipe, options)
    words = [parsed.recipe, *(word for word in parsed.arguments if parsed.recipe != "members")]
    name = parsed.name or "-".join([*words, scale] + ([str(parsed.subset)] if parsed.subset else []))
    return BuildPlan(
        folder=(parsed.root / "builds" / name).absolute(),
        recipe=" ".join(words),
        scale=scale,
        members=tuple(members),
        blend=parsed.blend,
        on_failure=parsed.on_failure,
    )


def default_scale(recordings: Sequence[Path] | None) -> Scale:
    """Return full where there are recordings and a GPU, demo elsewhere."""
    return "full" if recordings and torch.cuda.is_available() else "demo"


def plan_cluster(parsed: argparse.Namespace, *, scale: Scale, num_members: int) -> ClusterConfig:
    """Return where members are made: as many at once as this machine's or the cluster's resources allow.

    Raises:
        ValueError: an option is out of range.
    """
    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    address = parsed.address or os.environ.get("RAY_ADDRESS")
    gpus_per_member = parsed.gpus_per_member if parsed.gpus_per_member is not None else float(gpus > 0)
    slots: int | None
    if parsed.max_concurrent is not None:
        slots = parsed.max_concurrent
    elif address is not None:
        slots = None
    elif gpus_per_member > 0:
        slots = max(int(gpus / gpus_per_member), 1)
    else:
        # A small run gains nothing from a second thread, a full one gains little from a fifth.
        slots = cores if scale == "demo" else max(cores // 4, 1)
    if slots is not None and slots > num_members:
        slots = num_members
    on_cluster = 1 if scale == "demo" else 4
    share = on_cluster if slots is None else max(cores // max(slots * parsed.workers, 1), 1)
    return ClusterConfig(
        slots=slots,
        cpus_per_member=share if parsed.cpus_per_member is None else parsed.cpus_per_member,
        gpus_per_member=gpus_per_member,
        workers=parsed.workers,
        address=address,
        wait_seconds=60 * parsed.wait,
    )


def architectures(members: Sequence[Member]) -> Mapping[str, str]:
    """Return the architecture of each member, by name."""
    return {member.name: member.architecture for member in members}
