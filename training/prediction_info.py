"""What stored predictions are predictions of, and whether two of them may be averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool

RESPONSE_STD = "response_std"
"""Units: multiples of the standard deviation of the neuron's responses in the training tier."""


class PredictionError(ValueError):
    """Predictions that cannot be written, read or compared; the message names both sides and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionInfo:
    """What one file of predictions belongs to.

    Attributes:
        member: name of the run that predicted.
        session: recording that was predicted.
        tier: the part of it.
        trials: index of the trial in each row.
        frames: for each row the predicted frames of the trial, first and behind the last.
        num_neurons: neurons of the session.
        neurons_sha256: hash of the unit ids, in the order of the neuron axis.
        fingerprint: hash of the recording's data.
        checkpoint_sha256: hash of the parameters that predicted.
        units: of the values.
    """

    member: str
    session: str
    tier: str
    trials: tuple[int, ...]
    frames: tuple[tuple[int, int], ...]
    num_neurons: int
    neurons_sha256: str
    fingerprint: str
    checkpoint_sha256: str
    units: str = RESPONSE_STD

    def __post_init__(self) -> None:
        """Refuse what no file could hold."""
        for name in ("member", "session", "tier"):
            value = getattr(self, name)
            if not value or value.startswith(".") or "/" in value or "\\" in value:
                raise PredictionError(f"{name} is {value!r}, but must be usable as a file name")
        if not self.trials or len(set(self.trials)) != len(self.trials):
            raise PredictionError(
                f"trials of {self.session} are {self.trials}, but must be one or more, once"
            )
        if len(self.frames) != len(self.trials):
            raise PredictionError(f"frames has {len(self.frames)} ranges for {len(self.trials)} trials")
        for trial, (first, stop) in zip(self.trials, self.frames, strict=True):
            if not 0 <= first < stop:
                raise PredictionError(f"frames of trial {trial} are {first}..{stop}, but must be a range")
        if self.num_neurons < 1:
            raise PredictionError(f"num_neurons is {self.num_neurons}, but must be at least 1")

    @property
    def window(self) -> tuple[int, int]:
        """First frame and frame behind the last of the file's frame axis."""
        return min(first for first, _ in self.frames), max(stop for _, stop in self.frames)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Trials, neurons and frames of the file."""
        first, stop = self.window
        return len(self.trials), self.num_neurons, stop - first

    @property
    def mask(self) -> Bool[np.ndarray, "trial frame"]:
        """Which frames of the window are predicted in each trial; the others hold 0."""
        first, stop = self.window
        frames = np.arange(first, stop)
        bounds = np.array(self.frames)
        mask: Bool[np.ndarray, "trial frame"] = (frames >= bounds[:, :1]) & (frames < bounds[:, 1:])
        return mask

    def columns(self, trial: int) -> tuple[int, slice]:
        """Return the row of a trial and the columns of its predicted frames.

        Raises:
            PredictionError: the trial is not in the file.
        """
        if trial not in self.trials:
            raise PredictionError(
                f"trial {trial} of {self.session} ({self.tier}) is not predicted by {self.member}; "
                f"it has trials {_some(self.trials)}"
            )
        row = self.trials.index(trial)
        first, stop = self.frames[row]
        return row, slice(first - self.window[0], stop - self.window[0])

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"trials": list(self.trials), "frames": [list(pair) for pair in self.frames]}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "PredictionInfo":
        """Read what ``to_plain`` returned; further keys are ignored."""
        known = {field.name: plain[field.name] for field in fields(cls)}
        frames = tuple((int(first), int(stop)) for first, stop in known["frames"])
        return cls(**known | {"trials": tuple(known["trials"]), "frames": frames})


def require_same(first: PredictionInfo, second: PredictionInfo, *, same_frames: bool = True) -> None:
    """Refuse two members' predictions that are not of the same neurons, trials and frames.

    Args:
        first: of one member.
        second: of another.
        same_frames: also the same frames; without it average over ``common_frames`` only.

    Raises:
        PredictionError: naming both members and everything that differs.
    """
    names = ["session", "tier", "num_neurons", "neurons_sha256", "fingerprint", "trials", "units"]
    names += ["frames"] if same_frames else []
    problems = []
    for name in names:
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            problems.append(
                f"{name} is {_some(ours)} in {first.member} and {_some(theirs)} in {second.member}"
            )
    if problems:
        raise PredictionError(
            f"predictions of {first.member} and {second.member} for {first.session} ({first.tier}) "
            "cannot be combined: " + "; ".join(problems)
        )


def common_frames(infos: Sequence[PredictionInfo]) -> tuple[tuple[int, int], ...]:
    """Return for each trial the frames that every member predicts.

    Raises:
        PredictionError: members have other trials or neurons, or no frame of a trial in common.
    """
    for info in infos[1:]:
        require_same(infos[0], info, same_frames=False)
    common = []
    for row, trial in enumerate(infos[0].trials):
        first, stop = max(info.frames[row][0] for info in infos), min(info.frames[row][1] for info in infos)
        if first >= stop:
            members = ", ".join(info.member for info in infos)
            raise PredictionError(f"{members} have no predicted frame of trial {trial} in common")
        common.append((first, stop))
    return tuple(common)


def _some(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    listing = ", ".join(str(item) for item in value[:5])
    return f"({listing}{', ...' if len(value) > 5 else ''}; {len(value)} in all)"
