"""One HTTP connection's share of a large file: what to ask for, what to make of the answer, what to remember.

Bytes are appended to a partial file; beside it lies what they are a part of, so that a later attempt or run
can ask for the rest and notice when the file behind the URL has changed (RFC 9110, sections 13 and 14).
"""

import http.client
import io
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OnProgress = Callable[[int, int | None], None]
"""Told how many bytes are there, and of how many (None while unknown)."""

_CHUNK_BYTES = 2**20
_GONE = (400, 401, 403, 404, 405, 410, 451)


class TransferError(Exception):
    """A download that cannot be completed; the message says what was found and the way out."""


class InterruptedAttempt(Exception):  # noqa: N818 - not an error yet
    """An attempt that ended early; another one may do better."""

    def __init__(self, reason: str, *, wait_seconds: float = 0.0, from_zero: bool = False) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        self.from_zero = from_zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A zip to fetch.

    Attributes:
        url: where it lies.
        path: where it goes; until it is complete, the bytes are in ``<path>.partial``.
        expected_bytes: rough size, for when the server does not say.
        sha256: of the whole file, None if not known.
    """

    url: str
    path: Path
    expected_bytes: int = 0
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}, but must start with https:// or http://")

    @property
    def partial(self) -> Path:
        """Where the bytes are until all of them are there."""
        return self.path.with_name(f"{self.path.name}.partial")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What a partial file is a part of; kept beside it.

    Attributes:
        url: where its bytes come from.
        validator: ETag or date that changes when the file changes; empty if the server gives none.
        total: size of the whole file, None if the server does not say.
    """

    url: str
    validator: str
    total: int | None


def receive(
    download: Download, file: io.BufferedWriter, *, timeout_seconds: float, on_progress: OnProgress
) -> int | None:
    """Receive what one connection brings.

    Args:
        download: what to fetch.
        file: its partial file, opened for appending.
        timeout_seconds: silence that ends the connection.
        on_progress: told after every chunk.

    Returns:
        The size of the file once it is complete; None if the server never said it.

    Raises:
        InterruptedAttempt: the file is not complete, but may be after another attempt.
        TransferError: no attempt can help.
    """
    have = file.seek(0, os.SEEK_END)
    known = _read_source(download) if have else None
    if have and (known is None or known.url != download.url):
        # Nobody knows what these bytes are a part of.
        have = _restart(file)
        known = None
    with _open(download, have, known, timeout_seconds=timeout_seconds) as response:
        if response is None:
            return have
        have, source = _accept(download, response, file, have, known)
        _write_source(download, source)
        on_progress(have, source.total)
        while chunk := _receive(response):
            if have == 0 and not b"PK".startswith(chunk[:2]):
                raise TransferError(
                    f"{download.url} answered with {response.headers.get_content_type()} "
                    f"({chunk[:16]!r}...), but must be a zip; open it in a browser or give another --base-url"
                )
            _write(file, chunk)
            have += len(chunk)
            on_progress(have, source.total)
    if source.total is not None and have != source.total:
        raise InterruptedAttempt(
            f"connection ended after {have} of {source.total} bytes", from_zero=have > source.total
        )
    return source.total


def remote_size(url: str, timeout_seconds: float) -> int | None:
    """Ask how large the file behind a URL is; None if the server does not say or is not to be had."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - Download allows http and https only
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as response:  # noqa: S310
            length = response.headers.get("Content-Length", "")
    except (OSError, http.client.HTTPException):
        # Whether the server is to be had at all shows when the file itself is asked for.
        return None
    return int(length) if length.isdigit() else None


def num_bytes(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def forget_source(download: Download) -> None:
    """Remove what is remembered beside a partial file."""
    _source_path(download).unlink(missing_ok=True)


@contextmanager
def _open(
    download: Download, have: int, known: _Source | None, *, timeout_seconds: float
) -> Iterator[http.client.HTTPResponse | None]:
    """Ask for the rest of the file; None means that there is no rest."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "striate"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known is not None and known.validator:
            headers["If-Range"] = known.validator
    try:
        response = urllib.request.urlopen(  # noqa: S310 - Download allows http and https only
            urllib.request.Request(download.url, headers=headers),  # noqa: S310
            timeout=timeout_seconds,
        )
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have and _total(error.headers.get("Content-Range", "")) == have:
                yield None
                return
        raise _http_error(download, error, have) from error
    except (OSError, http.client.HTTPException) as error:
        raise InterruptedAttempt(f"no connection: {getattr(error, 'reason', error)}") from error
    with response:
        yield response


def _http_error(download: Download, error: urllib.error.HTTPError, have: int) -> Exception:
    if error.code in _GONE:
        return TransferError(
            f"{download.url}: the server answers {error.code} {error.reason}; "
            "look whether the file has moved, and give the new place with --base-url"
        )
    asked = error.headers.get("Retry-After", "")
    return InterruptedAttempt(
        f"the server answers {error.code} {error.reason}",
        wait_seconds=float(asked) if asked.isdigit() else 0.0,
        from_zero=error.code == 416 and have > 0,
    )


def _accept(
    download: Download,
    response: http.client.HTTPResponse,
    file: io.BufferedWriter,
    have: int,
    known: _Source | None,
) -> tuple[int, _Source]:
    """Judge an answer's headers; returns from which byte on it goes, and what of."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", "").strip())
        if found is None or int(found[1]) != have:
            raise InterruptedAttempt(
                f"asked for bytes from {have} on, the server sent "
                f"{response.headers.get('Content-Range', 'no Content-Range')!r}",
                from_zero=True,
            )
        total: int | None = int(found[3])
        if known is not None and known.total is not None and known.total != total:
            raise InterruptedAttempt(f"the file had {known.total} bytes and now has {total}", from_zero=True)
    else:
        have = _restart(file)
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    tag = response.headers.get("ETag", "")
    # If-Range does not allow weak tags (RFC 9110, 13.1.5).
    validator = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    return have, _Source(url=download.url, validator=validator, total=total)


def _receive(response: http.client.HTTPResponse) -> bytes:
    try:
        # read1 hands over what has come; read would lose up to a chunk when the connection breaks.
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise InterruptedAttempt(f"connection lost: {error or type(error).__name__}") from error


def _write(file: io.BufferedWriter, chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        raise TransferError(
            f"{file.name} cannot be written ({error}); make room and run the same command to go on"
        ) from error


def _restart(file: io.BufferedWriter) -> int:
    file.truncate(0)
    return file.seek(0)


def _total(content_range: str) -> int:
    found = re.fullmatch(r"bytes \*/(\d+)", content_range.strip())
    return int(found[1]) if found else -1


def _source_path(download: Download) -> Path:
    return download.partial.with_name(f"{download.partial.name}.json")


def _read_source(download: Download) -> _Source | None:
    try:
        fields: dict[str, Any] = json.loads(_source_path(download).read_text(encoding="utf-8"))
        return _Source(**fields)
    except (OSError, ValueError, TypeError):
        return None


def _write_source(download: Download, source: _Source) -> None:
    _source_path(download).write_text(json.dumps(asdict(source)), encoding="utf-8")
