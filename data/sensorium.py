"""Raw Sensorium-2023 recordings: find them, check them, read them; from mouse folders or downloaded zips.

Source: the data set's own description (gin.g-node.org/pollytur/sensorium_2023_dataset).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data.raw_checks import Layout, check_layout, refuse
from data.raw_files import RawFiles, is_mouse_folder, open_files, read_npy
from data.raw_format import ARRAYS, STATISTICS, STATISTICS_SCOPES
from data.raw_trials import RawTrial as RawTrial
from data.raw_trials import read_trial, trial_file
from data.recording import Neurons, RecordingError, Tier, Trial
from data.videos import VideoSignature, assign_video_ids

logger = logging.getLogger(__name__)

_SEARCH_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pass:
    """What one pass over all trials found out."""

    trials: tuple[Trial, ...]
    valid_lengths: Mapping[str, tuple[int, ...]]
    signatures: tuple[VideoSignature, ...]


class RawRecording:
    """A raw recording whose files and headers are checked; made by ``read_raw``.

    ``read_trials`` reads every trial once and checks its content. What needs such a pass (``trials``,
    ``valid_lengths``, ``signatures``) makes one when first asked for, unless ``read_trials`` ran to its end
    before. Picklable: the path travels, not the data.

    Attributes:
        session: the recording's name, its folder's.
        path: the mouse folder or zip.
        frame_rate_hz: of all arrays.
        neurons: in the order of the responses.
        tiers: of every trial.
        frame_shape: height and width of the videos.
        num_padded_frames: frames of the stored arrays, padded ones included.
        dtype: of the stored arrays (the widest, if they differ).
    """

    def __init__(self, files: RawFiles, layout: Layout) -> None:
        assert not layout.problems
        assert layout.neurons is not None
        self._files = files
        self._pass: _Pass | None = None
        height, width, num_padded_frames = layout.array_shapes["videos"]
        self.session: str = files.session
        self.path: Path = files.path
        self.frame_rate_hz: float = layout.frame_rate_hz
        self.neurons: Neurons = layout.neurons
        self.tiers: tuple[Tier, ...] = tuple(tier for tier in layout.tiers if tier is not None)
        self.frame_shape: tuple[int, int] = (height, width)
        self.num_padded_frames: int = num_padded_frames
        self.dtype: np.dtype[Any] = np.result_type(*{header.dtype for header in layout.headers.values()})

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial; video ids hold within this recording only (see ``assign_video_ids`` for several)."""
        return self._passed().trials

    @property
    def valid_lengths(self) -> Mapping[str, tuple[int, ...]]:
        """Valid frames of every trial, by array folder (``videos``, ``responses``, ...); 0 where withheld."""
        return self._passed().valid_lengths

    @property
    def signatures(self) -> tuple[VideoSignature, ...]:
        """The signature of every trial's video, to find it in other recordings."""
        return self._passed().signatures

    def read_trials(self) -> Iterator[RawTrial]:
        """Read and check every trial, one at a time, each file once.

        Trials with problems are left out; the error comes after the last trial and lists them all, so whoever
        writes what this yields must not call it complete before the iteration has ended.

        Raises:
            RecordingError: the content of any trial is broken.
        """
        problems: list[str] = []
        facts = []
        for index in range(len(self.tiers)):
            trial, found = read_trial(self._files, index, self.tiers[index])
            problems += found
            if trial is not None:
                facts.append(_facts(trial))
                yield trial
        if problems:
            raise refuse(self._files, problems)
        self._pass = _finish_pass(self.session, facts)

    def video(self, trial: Trial) -> Float[np.ndarray, "t h w"]:
        """Read a trial's video, grey levels 0..255 in the source's precision."""
        return np.moveaxis(self._read("videos", trial), -1, 0)

    def behavior(self, trial: Trial) -> Float[np.ndarray, "2 t"]:
        """Read pupil dilation (camera pixels) and running speed."""
        return self._read("behavior", trial)

    def pupil(self, trial: Trial) -> Float[np.ndarray, "2 t"]:
        """Read the pupil center, horizontal and vertical (camera pixels)."""
        return self._read("pupil_center", trial)

    def responses(self, trial: Trial) -> Float[np.ndarray, "n t"] | None:
        """Read deconvolved activity; None where the data set withholds it."""
        return self._read("responses", trial) if trial.has_responses else None

    def statistics(
        self, variable: str, name: str, *, scope: str = "all"
    ) -> Float[np.ndarray, "... t_pad"] | None:
        """Read official statistics per element and time point, over the train trials; None if not there.

        Args:
            variable: videos (h w t_pad), responses (n t_pad), behavior or pupil_center (2 t_pad).
            name: min, max, mean, median or std.
            scope: all or stimulus_frame, as the data set names its folders.
        """
        choices = (
            ("variable", variable, ARRAYS),
            ("name", name, STATISTICS),
            ("scope", scope, STATISTICS_SCOPES),
        )
        for argument, value, known in choices:
            if value not in known:
                raise ValueError(f"{argument} is {value!r}, but must be one of {', '.join(known)}")
        file = f"meta/statistics/{variable}/{scope}/{name}.npy"
        return self._read_file(file) if file in self._files.sizes else None

    def _read(self, array: str, trial: Trial) -> np.ndarray:
        return self._read_file(trial_file(array, trial.index))[..., : trial.num_frames]

    def _read_file(self, name: str) -> np.ndarray:
        try:
            return read_npy(self._files, name)
        except RecordingError as error:
            raise refuse(self._files, [str(error)]) from error

    def _passed(self) -> _Pass:
        if self._pass is None:
            for _ in self.read_trials():
                pass
        assert self._pass is not None
        return self._pass


def find_raw(paths: Sequence[Path]) -> list[Path]:
    """Find mouse folders and zips: each path is one, or a folder that has some inside.

    A zip beside the folder it was unpacked to is left out.

    Raises:
        RecordingError: a path does not exist or has no recording in it.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise RecordingError(
                f"{path} does not exist, but must be a mouse folder, a zip, or a folder of them"
            )
        inside = list(_search(path, _SEARCH_DEPTH))
        if not inside:
            raise RecordingError(
                f"{path} has no recording, but must be a mouse folder (with data/ and meta/), a zip of one, "
                "or a folder of them; get one with data/download.py or data/simulate.py"
            )
        for each in inside:
            name = each.stem if each.is_file() else each.resolve().name
            known = found.setdefault(name, each)
            if known.is_file() and each.is_dir():
                known, found[name] = each, each
            if known.resolve() != each.resolve():
                logger.info("%s is left out: %s holds the same recording", each, known)
    return sorted(found.values(), key=lambda path: (path.name, str(path)))


def read_raw(path: Path) -> RawRecording:
    """Open a mouse folder or zip and check its files, headers and tables; trials are read when asked for.

    If anything is wrong, the trials are read too, so that the error lists every problem there is.

    Raises:
        RecordingError: the recording is broken; the message lists all problems.
    """
    files = open_files(path)
    layout = check_layout(files)
    if not layout.problems:
        return RawRecording(files, layout)
    problems = list(layout.problems)
    for index in range(len(layout.tiers)):
        # What has no good header is reported already.
        readable = [array for array in ARRAYS if trial_file(array, index) in layout.headers]
        problems += read_trial(files, index, None, arrays=readable)[1]
    raise refuse(files, problems)


def _search(path: Path, depth: int) -> Iterator[Path]:
    if path.is_file():
        if path.suffix.lower() == ".zip" and not path.name.startswith("."):
            yield path
    elif is_mouse_folder(path):
        yield path
    elif depth > 0 and path.name != "__MACOSX":
        for child in sorted(path.iterdir()):
            yield from _search(child, depth - 1)


def _facts(trial: RawTrial) -> tuple[Trial, Mapping[str, int], VideoSignature]:
    described = Trial(
        index=trial.index,
        tier=trial.tier,
        num_frames=trial.num_frames,
        video_id="",
        stimulus=trial.stimulus,
        has_responses=trial.responses is not None,
    )
    return described, trial.valid_lengths, trial.signature


def _finish_pass(session: str, facts: Sequence[tuple[Trial, Mapping[str, int], VideoSignature]]) -> _Pass:
    signatures = tuple(signature for _, _, signature in facts)
    video_ids = assign_video_ids({session: signatures})[session]
    return _Pass(
        trials=tuple(
            replace(trial, video_id=video_id)
            for (trial, _, _), video_id in zip(facts, video_ids, strict=True)
        ),
        valid_lengths={array: tuple(lengths.get(array, 0) for _, lengths, _ in facts) for array in ARRAYS},
        signatures=signatures,
    )
