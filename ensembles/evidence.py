"""Evidence: what is known of a pool of members after one pass, enough to score any weighted mean exactly."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from data.recording import Stimulus
from ensembles.clips import Clip
from ensembles.packed_moments import keep_members, weigh

FORMAT = 1
Metric = Literal["single_trial", "to_average"]
METRICS: tuple[Metric, ...] = ("single_trial", "to_average")

Scales = Mapping[str, Float[np.ndarray, "_k _n"]]
"""Factors of each member's predictions, for each session and neuron."""

Weights = Float[np.ndarray, "..."] | Mapping[str, Float[np.ndarray, "..."]]
"""Weights ``(k)`` of the members, or ``(c k)`` where they differ between clips; or those of each session."""


class EvidenceError(ValueError):
    """Evidence that cannot be read or used; the message says what was found and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvidenceScore:
    """The score of one weighted mean, exactly as ``training.metrics`` would give it.

    Attributes:
        metric: which correlation.
        by_neuron: correlation of each session's neurons, 0 for a constant neuron.
        constant: which neurons of each session are constant (or have no valid frame).
        by_session: mean over the neurons of each session.
        by_stimulus: mean over the neurons of all sessions that showed a stimulus class, over its clips only.
        pooled: mean over the neurons of all sessions.
    """

    metric: Metric
    by_neuron: Mapping[str, Float64[np.ndarray, " n"]]
    constant: Mapping[str, Bool[np.ndarray, " n"]]
    by_session: Mapping[str, float]
    by_stimulus: Mapping[Stimulus, float]
    pooled: float

    @property
    def num_constant(self) -> int:
        """Neurons that count as 0 because response or prediction never changes."""
        return sum(int(constant.sum()) for constant in self.constant.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetScores:
    """Mean correlations of many weighted means over many multisets of clips.

    Attributes:
        by_session: of each session, multiset and weighting; NaN where the session shows no such clip.
        num_neurons: neurons of each session.
    """

    by_session: Float64[np.ndarray, "s q w"]
    num_neurons: Int[np.ndarray, " s"]

    @property
    def pooled(self) -> Float64[np.ndarray, "q w"]:
        """Mean over the neurons of all sessions that show a clip of the multiset."""
        known = ~np.isnan(self.by_session[:, :, :1])
        neurons = np.where(known, self.num_neurons[:, None, None], 0)
        total = np.where(known, self.by_session, 0.0) * neurons
        pooled: Float64[np.ndarray, "q w"] = total.sum(axis=0) / np.maximum(neurons.sum(axis=0), 1)
        return pooled


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Packed moments of a pool of members, by session, clip and neuron, in files of blocks of neurons.

    Attributes:
        folder: where they are.
        tier: name under which the predictions are stored.
        members: in the order of weights.
        sessions: in the order of the recordings.
        num_neurons: of each session.
        clips: what is weighted or left out; the order is that of ``clips`` arguments and of held-out weights.
        clips_of: numbers of the clips that each session shows.
        trials_of: index of each session's trials that are scored.
        num_masked: neurons and frames of each session that are left out because the response is NaN.
        fingerprint: hash of everything the evidence was made from.
    """

    folder: Path
    tier: str
    members: tuple[str, ...]
    sessions: tuple[str, ...]
    num_neurons: Mapping[str, int]
    clips: tuple[Clip, ...]
    clips_of: Mapping[str, tuple[int, ...]]
    trials_of: Mapping[str, tuple[int, ...]]
    num_masked: Mapping[str, int]
    fingerprint: str
    block: int
    stored_members: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "Evidence":
        """Open complete evidence; predictions and recordings are not needed.

        Raises:
            EvidenceError: it is missing, incomplete, or of another version.
        """
        try:
            plain = json.loads((folder / "evidence.json").read_text())
            if plain["format"] != FORMAT:
                raise EvidenceError(
                    f"{folder} has format {plain['format']}, but this version reads {FORMAT}; gather again"
                )
            identity = plain["identity"]
            sessions = identity["sessions"]
            return cls(
                folder=folder,
                tier=identity["tier"],
                members=tuple(identity["members"]),
                sessions=tuple(sessions),
                num_neurons={name: of["num_neurons"] for name, of in sessions.items()},
                clips=tuple(
                    Clip(name=c["name"], video_ids=tuple(c["videos"]), stimulus=Stimulus(c["stimulus"]))
                    for c in identity["clips"]
                ),
                clips_of={name: tuple(of["clips"]) for name, of in sessions.items()},
                trials_of={name: tuple(t[0] for t in of["trials"]) for name, of in sessions.items()},
                num_masked=plain["num_masked"],
                fingerprint=_hash(identity),
                block=plain["block"],
                stored_members=tuple(identity["members"]),
            )
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise EvidenceError(f"{folder} holds no complete evidence ({error!r}); gather again") from error

    def index(self, member: str) -> int:
        """Return the place of a member's weight."""
        if member not in self.members:
            raise EvidenceError(f"member is {member!r}, but must be one of {', '.join(self.members)}")
        return self.members.index(member)

    def only(self, members: Sequence[str]) -> "Evidence":
        """Return the evidence of some of the members; the files are shared."""
        for member in members:
            self.index(member)
        return replace(self, members=tuple(members))

    def blocks(
        self, session: str, metric: Metric, *, clips: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Float64[np.ndarray, "c values n"]]]:
        """Return packed moments of one session, block of neurons by block, for the clips it shows.

        Args:
            session: its name.
            metric: of single trials, or of means over repeats.
            clips: places among the session's own clips; None for all of them.
        """
        chosen = slice(None) if clips is None else list(clips)
        rows: Any = slice(None)
        if self.members != self.stored_members:
            kept = [self.stored_members.index(member) for member in self.members]
            rows = keep_members(len(self.stored_members), kept)
        for start in range(0, self.num_neurons[session], self.block):
            stop = min(start + self.block, self.num_neurons[session])
            mapped = np.load(block_path(self.folder, session, start), mmap_mode="r", allow_pickle=False)
            yield slice(start, stop), np.asarray(mapped[METRICS.index(metric)])[chosen][:, rows]

    def score(
        self,
        weights: Weights,
        *,
        clips: Sequence[int] | None = None,
        metric: Metric = "single_trial",
        scales: Scales | None = None,
    ) -> EvidenceScore:
        """Score one weighted mean of the members.

        Args:
            weights: of the members; they need not sum to 1, correlations do not depend on it.
            clips: numbers of the clips to score, repetitions allowed; None for each once.
            metric: which correlation.
            scales: factors of each member's predictions; None for 1.

        Raises:
            EvidenceError: weights or clips do not fit, or no session shows the clips.
        """
        times = np.bincount(self._numbers(clips), minlength=len(self.clips))
        stimuli = sorted({self.clips[number].stimulus for number in np.flatnonzero(times)})
        sets = np.stack(
            [times, *(times * self._shows(stimulus) for stimulus in stimuli)],
        )
        by_neuron, constant = {}, {}
        of_sets: dict[str, list[Float64[np.ndarray, " q"]]] = {}
        for session in self.sessions:
            own = sets[:, list(self.clips_of[session])]
            if not own[0].any():
                continue
            correlations, flat = [], []
            for neurons, moments in self.blocks(session, metric):
                weighted = weigh(
                    moments,
                    self.weights_of(session, weights)[:, None],
                    scales=None if scales is None else scales[session][:, neurons],
                )
                parts = [weighted.correlation(times) for times in own]
                correlations.append(np.stack([part[0][0] for part in parts]))
                flat.append(parts[0][1][0])
            joined = np.concatenate(correlations, axis=1)
            by_neuron[session], constant[session] = joined[0], np.concatenate(flat)
            of_sets[session] = [values if own[q].any() else values[:0] for q, values in enumerate(joined)]
        pooled = [float(np.concatenate([of[q] for of in of_sets.values()]).mean()) for q in range(len(sets))]
        return EvidenceScore(
            metric=metric,
            by_neuron=by_neuron,
            constant=constant,
            by_session={session: float(values.mean()) for session, values in by_neuron.items()},
            by_stimulus=dict(zip(stimuli, pooled[1:], strict=True)),
            pooled=pooled[0],
        )

    def score_sets(
        self,
        weightings: Sequence[Weights],
        sets: Int[np.ndarray, "q clips"],
        *,
        metric: Metric = "single_trial",
        scales: Scales | None = None,
    ) -> SetScores:
        """Score many weighted means over many multisets of clips in one pass over the evidence.

        Args:
            weightings: weights as for ``score``.
            sets: how often each clip is taken.
            metric: which correlation.
            scales: factors of each member's predictions, the same for all weightings.
        """
        result = np.full((len(self.sessions), len(sets), len(weightings)), np.nan)
        for place, session in enumerate(self.sessions):
            own, which = np.unique(sets[:, list(self.clips_of[session])], axis=0, return_inverse=True)
            weights = np.stack([self.weights_of(session, each) for each in weightings], axis=1)
            total = np.zeros((len(own), len(weightings)))
            for neurons, moments in self.blocks(session, metric):
                scale = None if scales is None else scales[session][:, neurons]
                weighted = weigh(moments, weights, scales=scale)
                for q, times in enumerate(own):
                    if times.any():
                        total[q] += weighted.correlation(times)[0].sum(axis=1)
            total /= self.num_neurons[session]
            total[~own.any(axis=1)] = np.nan
            result[place] = total[which.reshape(-1)]
        return SetScores(
            by_session=result, num_neurons=np.array([self.num_neurons[name] for name in self.sessions])
        )

    def standard_deviations(self, session: str) -> Float64[np.ndarray, "k n"]:
        """Return the std over frames of each member's predictions of each neuron; it uses no response."""
        parts = []
        num_clips = len(self.clips_of[session])
        for _, moments in self.blocks(session, "single_trial"):
            weights = np.broadcast_to(np.eye(len(self.members)), (num_clips, *[len(self.members)] * 2))
            weighted = weigh(moments, weights)
            total = np.maximum(weighted.count.sum(axis=0), 1.0)
            mean = (weighted.count[:, None] * weighted.mean).sum(axis=0) / total
            between = (weighted.count[:, None] * (weighted.mean - mean) ** 2).sum(axis=0)
            variance = (weighted.scatter.sum(axis=0) + between) / total
            parts.append(np.sqrt(np.maximum(variance, 0.0)))
        return np.concatenate(parts, axis=1)

    def weights_of(self, session: str, weights: Weights) -> Float64[np.ndarray, "c k"]:
        """Return the weights at each clip that a session shows."""
        of_session = weights[session] if isinstance(weights, Mapping) else weights
        array = np.asarray(of_session, dtype=np.float64)
        if array.shape not in ((len(self.members),), (len(self.clips), len(self.members))):
            raise EvidenceError(
                f"weights have shape {array.shape}, but must have ({len(self.members)},) "
                f"or ({len(self.clips)}, {len(self.members)}) for clips and members"
            )
        if not np.isfinite(array).all():
            raise EvidenceError("weights are not finite, but must be numbers")
        everywhere = np.broadcast_to(array, (len(self.clips), len(self.members)))
        return everywhere[list(self.clips_of[session])]

    def _shows(self, stimulus: Stimulus) -> Bool[np.ndarray, " clips"]:
        return np.array([clip.stimulus == stimulus for clip in self.clips])

    def _numbers(self, clips: Sequence[int] | None) -> Int[np.ndarray, " _"]:
        numbers = np.arange(len(self.clips)) if clips is None else np.asarray(clips, dtype=np.int64)
        if not len(numbers) or numbers.min() < 0 or numbers.max() >= len(self.clips):
            raise EvidenceError(
                f"clips are {numbers.tolist()}, but must be one or more of 0 to {len(self.clips) - 1}"
            )
        return numbers


def block_path(folder: Path, session: str, start: int) -> Path:
    """Return the file of a block of neurons: packed moments of single trials and of means over repeats."""
    return folder / session / f"block-{start:06d}.npy"


def _hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
