"""The store: converted recordings in one folder, and the manifest that says what belongs to it.

::

    store/
      manifest.json                 format, sizes, sha256, sources, units; written last
      trials-<hash>.parquet         every trial of every session, with its video id
      <session>/session.json        what the manifest says of this session, written when it was complete
      <session>/trials.parquet      one row per trial: tier, stimulus, valid lengths, where its frames are
      <session>/neurons.parquet     unit id, position in cortex
      <session>/videos.npy          uint8 (frame, row, column); clips that no earlier session holds
      <session>/behavior.npy        float32 (frame, 4): pupil dilation, running speed, gaze x, gaze y
      <session>/responses.npy       float16 or float32 (frame, neuron); labelled trials only
      <session>/signatures.npy      int16 (valid video frame of every trial, 32): tells equal videos
      <session>/statistics/*.npy    official statistics as far as released, float32 (name, ...)

A session's folder never changes once it has its name, and a trial table is named after its content: processes
that hold an older view of a store, which other sessions have joined since, go on undisturbed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from data.array_files import FileEntry, StoreError, check_hash, check_size, write_bytes
from data.confined import parse_json, read_small, require_inside, require_name

FORMAT = "striate-store"
FORMAT_VERSION = 1
CONVERTER = "striate 0.1.0"
MANIFEST = "manifest.json"
SESSION_FILE = "session.json"
UNITS = {
    "videos": "grey level 0..255",
    "responses": "deconvolved calcium activity, as released",
    "behavior": "columns: pupil dilation (camera px), running speed, pupil center x, y (camera px)",
    "coordinates": "micrometres",
}
VARIABLES = ("videos", "responses", "behavior", "pupil_center")
STATISTICS = ("min", "max", "mean", "median", "std")
_ELEMENT_TYPES = ("uint8", "int16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a session came from.

    Attributes:
        name: of the raw folder or zip.
        dtype: of its response files.
        key: digest of the names, sizes and times of its files.
    """

    name: str
    dtype: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEntry:
    """What the manifest says of one session.

    Attributes:
        session: its name.
        source: where it came from.
        frame_rate_hz: of all its arrays.
        frame_shape: rows and columns of a video frame.
        num_padded_frames: frames of the raw arrays and of the official statistics.
        fingerprint: sha256 of neuron ids, trials and data: the same session has the same one in every store
            of the same element types.
        files: every file of its folder but ``session.json``, by relative path.
    """

    session: str
    source: Source
    frame_rate_hz: float
    frame_shape: tuple[int, int]
    num_padded_frames: int
    fingerprint: str
    files: Mapping[str, FileEntry]

    @property
    def responses_dtype(self) -> str:
        """Element type of the stored responses."""
        return self.files["responses.npy"].dtype

    @property
    def video_dtype(self) -> str:
        """Element type of the stored videos."""
        return self.files["videos.npy"].dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What belongs to a store.

    Attributes:
        trials_table: name of the table of all trials.
        trials_file: that table's size and checksum.
        sessions: by name, in alphabetical order.
    """

    trials_table: str
    trials_file: FileEntry
    sessions: Mapping[str, SessionEntry]

    def entry(self, session: str) -> SessionEntry:
        """Return one session's entry.

        Raises:
            StoreError: the store has no such session.
        """
        if session not in self.sessions:
            guess = get_close_matches(session, self.sessions, n=1, cutoff=0.3)
            hint = f" (did you mean {guess[0]}?)" if guess else ""
            raise StoreError(f"session is {session!r}, but must be one of {', '.join(self.sessions)}{hint}")
        return self.sessions[session]


def is_store(path: Path) -> bool:
    """Whether a folder is a finished store."""
    return (path / MANIFEST).is_file()


def read_manifest(store: Path) -> Manifest:
    """Read what belongs to a store.

    Raises:
        StoreError: no store, an unfinished one, or one of another format version.
    """
    path = store / MANIFEST
    if not path.is_file():
        if finished_sessions(store) or any(store.glob("*.partial")):
            raise StoreError(
                f"{store} holds an unfinished conversion (no {MANIFEST}); run data/convert.py again with the "
                "same arguments: it continues after the last finished session"
            )
        raise StoreError(
            f"{store} is not a store (no {MANIFEST}); make one with data/convert.py RAW... --to STORE"
        )
    content = _read_json(path)
    try:
        trials = content["tables"]["trials"]
        entries = {name: _session_entry(entry, path) for name, entry in content["sessions"].items()}
        for name, entry in entries.items():
            if name != entry.session:
                raise StoreError(f"{path} has session {entry.session!r} under the name {name!r}; restore it")
        return Manifest(
            trials_table=require_name(
                trials["path"], what=f"the table of trials in {path}", error=StoreError
            ),
            trials_file=_file_entry({key: trials[key] for key in ("size", "sha256")}, path),
            sessions=entries,
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise StoreError(f"{path} is incomplete ({error!r}); restore it, or convert again") from error


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Make everything the manifest names part of the store, in one atomic step."""
    content = {
        **_format_fields(),
        "units": UNITS,
        "tables": {"trials": {"path": manifest.trials_table, **_file_fields(manifest.trials_file)}},
        "sessions": {name: _session_fields(entry) for name, entry in manifest.sessions.items()},
    }
    write_bytes(store / MANIFEST, _as_json(content))


def write_session_file(folder: Path, entry: SessionEntry) -> None:
    """Write what the manifest will say of a session; the last file of its folder."""
    write_bytes(folder / SESSION_FILE, _as_json({**_format_fields(), **_session_fields(entry)}))


def finished_sessions(store: Path) -> dict[str, SessionEntry]:
    """Return the completely written sessions of a store, in the manifest or not yet.

    Raises:
        StoreError: one of them has another format version.
    """
    entries = [_session_entry(_read_json(path), path) for path in sorted(store.glob(f"*/{SESSION_FILE}"))]
    return {entry.session: entry for entry in entries if (store / entry.session / SESSION_FILE).is_file()}


def check_sizes(folder: Path, entry: SessionEntry) -> None:
    """Refuse a session with a missing, truncated or overlong file; reads no data.

    Raises:
        StoreError: a file's size is not the manifest's.
    """
    for name, file in entry.files.items():
        check_size(folder / name, file)


def check_store(store: Path, *, on_file: Callable[[int, int], None] | None = None) -> list[str]:
    """Read every byte of a store and compare it with the manifest.

    Args:
        store: the folder.
        on_file: is told the bytes checked so far and in all.

    Returns:
        One sentence per broken file; empty if the store is intact.

    Raises:
        StoreError: there is no readable manifest.
    """
    manifest = read_manifest(store)
    files = [(store / manifest.trials_table, manifest.trials_file)]
    files += [
        (store / s / name, file) for s, e in manifest.sessions.items() for name, file in e.files.items()
    ]
    total = sum(file.size for _, file in files)
    done = 0
    problems = []
    for path, file in files:
        try:
            check_hash(path, file)
        except StoreError as error:
            problems.append(str(error))
        done += file.size
        if on_file is not None:
            on_file(done, total)
    return problems


def _format_fields() -> dict[str, Any]:
    return {"format": FORMAT, "format_version": FORMAT_VERSION, "converter": CONVERTER}


def _file_fields(file: FileEntry) -> dict[str, Any]:
    fields: dict[str, Any] = {"size": file.size, "sha256": file.sha256}
    return {**fields, "dtype": file.dtype, "shape": list(file.shape)} if file.is_array else fields


def _file_entry(fields: Mapping[str, Any], path: Path) -> FileEntry:
    entry = FileEntry(**{**fields, "shape": tuple(fields.get("shape", ()))})
    numbers = (entry.size, *entry.shape)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise StoreError(
            f"{path} has size {entry.size!r} and shape {entry.shape}, but must have whole numbers"
        )
    if entry.dtype and entry.dtype not in _ELEMENT_TYPES:
        raise StoreError(
            f"{path} has element type {entry.dtype!r}, but must have one of {', '.join(_ELEMENT_TYPES)}"
        )
    return entry


def _session_fields(entry: SessionEntry) -> dict[str, Any]:
    files = {name: _file_fields(file) for name, file in entry.files.items()}
    fields = {field.name: getattr(entry, field.name) for field in dataclass_fields(entry)}
    return {**fields, "source": asdict(entry.source), "frame_shape": list(entry.frame_shape), "files": files}


def _session_entry(fields: Mapping[str, Any], path: Path) -> SessionEntry:
    require_name(fields["session"], what=f"a session in {path}", error=StoreError)
    return SessionEntry(
        **{name: fields[name] for name in ("session", "frame_rate_hz", "num_padded_frames", "fingerprint")},
        source=Source(**fields["source"]),
        frame_shape=(fields["frame_shape"][0], fields["frame_shape"][1]),
        files={
            require_inside(name, what=f"a file in {path}", error=StoreError): _file_entry(file, path)
            for name, file in fields["files"].items()
        },
    )


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode("ascii")


def _read_json(path: Path) -> dict[str, Any]:
    """Read a manifest or session file, refusing what this version cannot understand."""
    try:
        content = parse_json(read_small(path))
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON ({error}); convert the recordings again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise StoreError(f"{path} does not say that it is a {FORMAT}; give the folder data/convert.py wrote")
    if content.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {content.get('format_version')}, but must have {FORMAT_VERSION} "
            f"to be read by {CONVERTER}; convert the recordings again into a new store"
        )
    return content
