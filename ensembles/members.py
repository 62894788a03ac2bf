"""Members of an ensemble: what each of them is, what a process must know to make one, how that ended."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.recording import Tier
from training.results import EpochReport, Outcome
from training.spec import RunSpec

OnEpoch = Callable[[str, EpochReport], None]
"""Called with the name of a member after each of its epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of an ensemble.

    Attributes:
        name: in tables, folders and the manifest.
        spec: the run that it is.
        source: checkpoint of a run that exists already; None trains one.
        teacher: name of the member whose encoder it learns from.
        trunk: name of the member whose core it shares: it is one of its heads, and not trained itself.
        is_pooled: whether it is averaged; a trunk with all its heads is not, its heads are.
    """

    name: str
    spec: RunSpec
    source: Path | None = None
    teacher: str | None = None
    trunk: str | None = None
    is_pooled: bool = True

    @property
    def architecture(self) -> str:
        """The group it belongs to where weights are shared by architecture."""
        return self.spec.family


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberJob:
    """All that a process must know to make a member.

    Attributes:
        member: which one; the teacher's checkpoint stands in its spec.
        folder: the member's run folder.
        store: the recordings.
        sessions: those to train on and to predict.
        predictions: folder of the prediction store.
        tiers: what to predict beside the common hold-out trials.
        holdout: hold-out trials of all members by session; empty without any.
        threads: of the CPU, for torch.
    """

    member: Member
    folder: Path
    store: Path
    sessions: tuple[str, ...]
    predictions: Path
    tiers: tuple[Tier, ...]
    holdout: tuple[tuple[str, tuple[int, ...]], ...]
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberResult:
    """How the making of a member ended.

    Attributes:
        name: of the member.
        outcome: finished or failed.
        checkpoint: folder of its kept encoder.
        score: hold-out score of its run.
        epochs: trained.
        train_seconds: of training, those before interruptions included.
        predict_seconds: per predicted trial; None where all predictions were there already.
        error: why it failed, in words.
    """

    name: str
    outcome: Outcome
    checkpoint: Path | None = None
    score: float | None = None
    epochs: int = 0
    train_seconds: float = 0.0
    predict_seconds: float | None = None
    error: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the member can be averaged."""
        return self.outcome is Outcome.FINISHED


Executor = Callable[[Sequence[MemberJob], OnEpoch], Iterator[MemberResult]]
"""Makes members, in any order, and yields how each of them ended."""


def in_waves(members: Iterable[Member]) -> list[list[Member]]:
    """Return members such that nobody needs a member of the same or a later wave."""
    waves: list[list[Member]] = []
    wave_of: dict[str, int] = {}
    for member in members:
        needed = [name for name in (member.teacher, member.trunk) if name is not None]
        for name in needed:
            if name not in wave_of:
                raise ValueError(f"{member.name} needs {name!r}, but must need an earlier member")
        wave = max((wave_of[name] + 1 for name in needed), default=0)
        wave_of[member.name] = wave
        while len(waves) <= wave:
            waves.append([])
        waves[wave].append(member)
    return waves
