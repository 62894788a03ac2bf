"""Make finished sessions one store: derive which trials show the same video, then write the manifest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.array_files import StoreError, map_array
from data.session_writer import Clip, read_clips
from data.store import Manifest, SessionEntry, check_sizes, is_store, read_manifest, write_manifest
from data.trial_table import TrialRow, read_trials, write_all_trials
from data.videos import VideoSignature, assign_video_ids


def publish(store: Path, finished: Mapping[str, SessionEntry]) -> Manifest:
    """Derive the video ids over all sessions and make them the store."""
    if not finished:
        raise StoreError(f"there is nothing to put into {store}; name at least one raw recording")
    if is_store(store) and set(read_manifest(store).sessions) == set(finished):
        return read_manifest(store)
    for session, entry in finished.items():
        check_sizes(store / session, entry)
    finished = dict(sorted(finished.items()))
    rows = {session: read_trials(store / session / "trials.parquet") for session in finished}
    _check_clips(store, rows)
    signatures = {
        session: _read_signatures(store, entry, rows[session]) for session, entry in finished.items()
    }
    video_ids = assign_video_ids(signatures)
    named = [
        replace(row, video_id=video_id)
        for session in finished
        for row, video_id in zip(rows[session], video_ids[session], strict=True)
    ]
    table, file = write_all_trials(store, named)
    manifest = Manifest(trials_table=table, trials_file=file, sessions=finished)
    write_manifest(store, manifest)
    return manifest


def _check_clips(store: Path, rows: Mapping[str, Sequence[TrialRow]]) -> None:
    for session in rows:
        missing = {row.video_session for row in rows[session]} - set(rows)
        if missing:
            raise StoreError(
                f"{store / session} shows clips that lie in {', '.join(sorted(missing))}, which is gone "
                f"from the store; remove {store / session} too and convert both again"
            )


def _read_signatures(store: Path, entry: SessionEntry, rows: Sequence[TrialRow]) -> list[VideoSignature]:
    values = map_array(store / entry.session / "signatures.npy", entry.files["signatures.npy"])
    signatures, start = [], 0
    for row in rows:
        stop = start + row.valid_videos
        signatures.append(VideoSignature(values=values[start:stop], frame_shape=entry.frame_shape))
        start = stop
    assert start == len(values)
    return signatures


def stored_clips(store: Path, entries: Iterable[SessionEntry], *, dtype: str) -> dict[str, Clip]:
    """Return the clips that finished sessions hold, by what identifies them."""
    clips: dict[str, Clip] = {}
    for entry in entries:
        if entry.video_dtype == dtype:
            clips |= read_clips(read_trials(store / entry.session / "trials.parquet"))
    return clips
