"""The table of trials in a store: what was shown, what is valid, and where the frames are."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.array_files import FileEntry, StoreError, write_bytes

_HASH_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial as the store's tables describe it; the fields are the columns.

    Attributes:
        session: the recording it belongs to.
        trial: its index in the raw folder.
        tier: its split.
        stimulus: kind of video.
        video_id: same video, same id, in all sessions of the store.
        num_frames: frames valid in all of its arrays; what the store holds of behavior and responses.
        has_responses: False where they are withheld.
        valid_videos: valid frames of the raw video; likewise the next three.
        valid_responses: 0 where withheld.
        valid_behavior: of pupil dilation and running speed.
        valid_pupil_center: of the pupil center.
        row: its first row in ``behavior.npy``.
        responses_row: its first row in ``responses.npy``; -1 where withheld.
        video_session: the session whose ``videos.npy`` holds the clip.
        video_row: the clip's first row there.
        video_sha256: of the stored clip; equal for exact duplicates.
    """

    session: str
    trial: int
    tier: str
    stimulus: str
    video_id: str
    num_frames: int
    has_responses: bool
    valid_videos: int
    valid_responses: int
    valid_behavior: int
    valid_pupil_center: int
    row: int
    responses_row: int
    video_session: str
    video_row: int
    video_sha256: str


_ARROW_TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
SCHEMA = pa.schema({field.name: _ARROW_TYPES[cast(type, field.type)] for field in fields(TrialRow)})


def write_trials(path: Path, rows: Iterable[TrialRow]) -> FileEntry:
    """Write the trials of one session."""
    return write_bytes(path, _as_parquet(rows))


def write_all_trials(store: Path, rows: Iterable[TrialRow]) -> tuple[str, FileEntry]:
    """Write the trials of all sessions to a table that is named after its content; return name and entry.

    A table that is there already is not touched: others may be reading it.
    """
    content = _as_parquet(rows)
    name = f"trials-{hashlib.sha256(content).hexdigest()[:_HASH_LENGTH]}.parquet"
    return name, write_bytes(store / name, content)


def read_trials(path: Path, *, session: str | None = None) -> list[TrialRow]:
    """Read the trials of one session, or of all of them.

    Raises:
        StoreError: the table is missing or is not what was written.
    """
    try:
        table = pq.read_table(path, schema=SCHEMA, partitioning=None)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; convert the recordings again into a new store") from None
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{path} is not a table of trials ({error}); convert the recordings again") from None
    if session is not None:
        table = table.filter(pc.field("session") == session)
    return [TrialRow(**row) for row in table.to_pylist()]


def _as_parquet(rows: Iterable[TrialRow]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
