"""Convert raw recordings to a store: one pass per mouse, and nothing done twice after a crash."""

import fcntl
import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from data.array_files import StoreError
from data.catalog import publish, stored_clips
from data.raw_files import open_files
from data.recording import Tier
from data.sensorium import RawRecording, read_raw
from data.session_writer import Clip, ResponseRangeError, SessionWriter
from data.store import (
    STATISTICS,
    VARIABLES,
    Manifest,
    SessionEntry,
    Source,
    finished_sessions,
)

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionConfig:
    """How recordings are stored.

    Attributes:
        responses: float16 keeps 11 bits (a relative error below 2^-11) and refuses values it cannot hold so;
            auto is float16 where it can and float32 elsewhere, chosen for each session.
        video: uint8 rounds to whole grey levels; float16 keeps 11 bits.
    """

    responses: Literal["auto", "float16", "float32"] = "auto"
    video: Literal["uint8", "float16"] = "uint8"

    def __post_init__(self) -> None:
        """Refuse unknown element types."""
        for name, known in (("responses", ("auto", "float16", "float32")), ("video", ("uint8", "float16"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionProgress:
    """How far a conversion is.

    Attributes:
        session: what is being read.
        done_bytes: of the sources, this session's and those before.
        total_bytes: of all sources that are not converted yet.
    """

    session: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSource:
    """A raw recording as seen from outside, without reading it.

    Attributes:
        path: mouse folder or zip.
        session: its name.
        size: bytes of its files, unpacked.
        key: digest of the names, sizes and times of its files.
    """

    path: Path
    session: str
    size: int
    key: str


OnProgress = Callable[[ConversionProgress], None]


def describe_source(path: Path) -> RawSource:
    """Look at a raw recording's names, sizes and times; reads no file.

    Raises:
        RecordingError: there is no such path, or the zip is damaged.
    """
    files = open_files(path)
    if path.is_file():
        facts = [("", path.stat().st_size, path.stat().st_mtime_ns)]
    else:
        times = {name: (path / name).stat().st_mtime_ns for name in files.sizes}
        facts = [(name, size, times[name]) for name, size in sorted(files.sizes.items())]
    key = hashlib.sha256(repr((files.session, facts)).encode()).hexdigest()
    return RawSource(path=path, session=files.session, size=sum(files.sizes.values()), key=key)


def convert(
    raw: Sequence[Path],
    store: Path,
    config: ConversionConfig | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Convert raw recordings into a new store, or add them to one.

    A session that an earlier, interrupted call finished is not read again; one that it left half-written is
    written anew. The video ids are derived over all sessions of the store, the ones it had included. Until
    the last session is complete the store stays what it was before.

    Args:
        raw: mouse folders and zips, as ``find_raw`` returns them.
        store: the folder to write to.
        config: how to store.
        on_progress: called after every trial.

    Raises:
        RecordingError: a source is broken.
        StoreError: the store cannot take the recordings: another format version, the same session from
            another source or with another element type, values outside of the element type, too little disk.
    """
    config = config or ConversionConfig()
    store.mkdir(parents=True, exist_ok=True)
    with _exclusively(store):
        sources = _distinct([describe_source(path) for path in raw])
        finished = finished_sessions(store)
        waiting = [source for source in sources if source.session not in finished]
        for source in sources:
            if source.session in finished:
                _check_same(store, finished[source.session], source, config=config)
        # Names, headers and tables first: a broken last mouse should not be found after hours.
        recordings = [read_raw(source.path) for source in waiting]
        _check_disk(store, recordings, config=config)
        meter = _Meter(total_bytes=sum(source.size for source in waiting), on_progress=on_progress)
        for source, recording in zip(waiting, recordings, strict=True):
            clips = stored_clips(store, finished.values(), dtype=config.video)
            finished[source.session] = _convert_session(
                recording, store, config, source=source, clips=clips, meter=meter
            )
        return publish(store, finished)


class _Meter:
    """Tell how many bytes of the sources are done."""

    def __init__(self, *, total_bytes: int, on_progress: OnProgress | None) -> None:
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self._on_progress = on_progress

    def show(self, source: RawSource, share: float) -> None:
        if self._on_progress is not None:
            done = self.done_bytes + int(share * source.size)
            progress = ConversionProgress(
                session=source.session, done_bytes=done, total_bytes=self.total_bytes
            )
            self._on_progress(progress)

    def finish(self, source: RawSource) -> None:
        self.show(source, 1.0)
        self.done_bytes += source.size


def _convert_session(
    recording: RawRecording,
    store: Path,
    config: ConversionConfig,
    *,
    source: RawSource,
    clips: Mapping[str, Clip],
    meter: _Meter,
) -> SessionEntry:
    dtype = "float16" if config.responses == "auto" else config.responses
    try:
        entry = _write_session(recording, store, dtype, config.video, source=source, clips=clips, meter=meter)
    except ResponseRangeError as error:
        if config.responses != "auto":
            raise
        logger.info("%s; storing this session as float32", error)
        entry = _write_session(
            recording, store, "float32", config.video, source=source, clips=clips, meter=meter
        )
    meter.finish(source)
    return entry


def _write_session(
    recording: RawRecording,
    store: Path,
    responses: str,
    video: str,
    *,
    source: RawSource,
    clips: Mapping[str, Clip],
    meter: _Meter,
) -> SessionEntry:
    with SessionWriter(
        store,
        recording.session,
        neurons=recording.neurons,
        source=Source(name=source.path.resolve().name, dtype=recording.dtype.name, key=source.key),
        frame_rate_hz=recording.frame_rate_hz,
        frame_shape=recording.frame_shape,
        num_padded_frames=recording.num_padded_frames,
        responses_dtype=responses,
        video_dtype=video,
        known_clips=clips,
    ) as writer:
        for index, trial in enumerate(_read_ahead(recording.read_trials())):
            writer.add(trial)
            meter.show(source, (index + 1) / len(recording.tiers))
        for variable in VARIABLES:
            values = {name: recording.statistics(variable, name) for name in STATISTICS}
            known = {name: value for name, value in values.items() if value is not None}
            if len(known) == len(STATISTICS):
                writer.add_statistics(variable, known)
        return writer.finish()


def _read_ahead(items: Iterator[_T]) -> Iterator[_T]:
    """Yield the items while the next one is being read: disk and casts take turns otherwise."""
    end = object()
    with ThreadPoolExecutor(max_workers=1) as reader:
        future = reader.submit(next, items, end)
        while (item := future.result()) is not end:
            future = reader.submit(next, items, end)
            yield item  # type: ignore[misc]


def _distinct(sources: Sequence[RawSource]) -> list[RawSource]:
    by_session: dict[str, RawSource] = {}
    for source in sources:
        other = by_session.setdefault(source.session, source)
        if other.path.resolve() != source.path.resolve():
            raise StoreError(
                f"session {source.session} comes from {other.path} and from {source.path}; "
                "leave one of them out"
            )
    return list(by_session.values())


def _check_same(store: Path, entry: SessionEntry, source: RawSource, *, config: ConversionConfig) -> None:
    """Refuse to take a finished session for another source or another way of storing it."""
    if entry.source.key != source.key:
        raise StoreError(
            f"{store} has {entry.session} already, but from files of other names, sizes or times than "
            f"{source.path}; leave it out, or convert into a new store"
        )
    for what, found, wanted in (
        ("responses", entry.responses_dtype, config.responses),
        ("video", entry.video_dtype, config.video),
    ):
        if wanted not in (found, "auto"):
            raise StoreError(
                f"{store} has the {what} of {entry.session} as {found}, but {wanted} is asked for; "
                "convert into a new store"
            )


def _check_disk(store: Path, recordings: Sequence[RawRecording], *, config: ConversionConfig) -> None:
    """Refuse to start what surely cannot fit; how many trials have responses is known only after reading."""
    item_size = 4 if config.responses == "float32" else 2
    needed = 0
    for recording in recordings:
        num_trials = sum(tier in (Tier.TRAIN, Tier.ORACLE) for tier in recording.tiers)
        shortest = recording.num_padded_frames // 2
        needed += num_trials * shortest * len(recording.neurons.ids) * item_size
    free = shutil.disk_usage(store).free
    if needed > free:
        raise StoreError(
            f"{store} has {free / 1e9:.1f} GB of free disk, but the store needs at least "
            f"{needed / 1e9:.1f} GB; make room or write to another disk"
        )


@contextmanager
def _exclusively(store: Path) -> Iterator[None]:
    """Let one process at a time write to a store; the system drops the lock of a process that dies."""
    with (store / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("%s is being written by another process; waiting for it", store)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
