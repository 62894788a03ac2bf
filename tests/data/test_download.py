import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data.http_parts import Download, TransferError
from data.mice import PUBLIC_MICE
from data.transfer import Patience, check_space, fetch

ROOT = Path(__file__).parents[2]
PATIENCE = Patience(attempts=4, first_wait_seconds=1.0, longest_wait_seconds=30.0, timeout_seconds=2.0)


def make_zip(seed: int = 0, num_bytes: int = 300_000) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("noise.bin", np.random.default_rng(seed).bytes(num_bytes))
    return buffer.getvalue()


CONTENT = make_zip()


class Server:
    """A file server on loopback that plays one trick per GET request, then behaves."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"v1"'
        self.tricks: list[Callable[[BaseHTTPRequestHandler], bool]] = []
        self.ranges: list[str | None] = []
        self.knows_head = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.ranges.append(self.headers.get("Range"))
                if not server.tricks or server.tricks.pop(0)(self):
                    server.answer(self)

            def do_HEAD(self):
                self.send_response(200 if server.knows_head else 405)
                self.send_header("Content-Length", str(len(server.content) if server.knows_head else 0))
                self.end_headers()

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request, *, stop_after: int | None = None, ranges: bool = True) -> None:
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")) if ranges else None
        condition = request.headers.get("If-Range")
        if asked and (condition is None or condition == self.etag):
            start = int(asked[1])
            if start >= len(self.content):
                send(request, 416, {"Content-Range": f"bytes */{len(self.content)}"})
                return
            request.send_response(206)
            end = len(self.content) - 1
            request.send_header("Content-Range", f"bytes {start}-{end}/{len(self.content)}")
        else:
            request.send_response(200)
        if self.etag is not None:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        request.wfile.write(self.content[start:][:stop_after])


def send(request, status: int, headers: dict[str, str], body: bytes = b"") -> bool:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
    return False


@pytest.fixture
def server():
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def download(server, tmp_path) -> Download:
    return Download(url=f"{server.url}/mouse.zip", path=tmp_path / "mouse.zip")


def run(download: Download, *, patience: Patience = PATIENCE):
    waits: list[float] = []
    seen: list[tuple[int, int | None]] = []
    path = fetch(
        download,
        patience=patience,
        on_progress=lambda have, total: seen.append((have, total)),
        sleep=waits.append,
    )
    assert path == download.path
    return waits, seen


def drop_after(server: Server, num_bytes: int, *, ranges: bool = True):
    def trick(request):
        server.answer(request, stop_after=num_bytes, ranges=ranges)
        return False

    return trick


def assert_complete(download: Download, content: bytes = CONTENT) -> None:
    assert download.path.read_bytes() == content
    assert [path.name for path in download.path.parent.iterdir()] == [download.path.name]


def test_a_zip_is_fetched_and_nothing_else_is_left(download):
    waits, seen = run(download)
    assert_complete(download)
    assert waits == []
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_complete_zip_is_not_fetched_again(download, server):
    run(download)
    run(download)
    assert server.ranges == [None]


def test_a_dropped_connection_goes_on_where_it_stopped(download, server):
    server.tricks = [drop_after(server, 100_000), drop_after(server, 50_000)]
    waits, seen = run(download)
    assert_complete(download)
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    # Every attempt brought something, so the wait never grows.
    assert waits == [1.0, 1.0]
    assert [have for have, _ in seen] == sorted(have for have, _ in seen)


def test_a_later_run_goes_on_where_an_earlier_one_stopped(download, server):
    server.tricks = [drop_after(server, 120_000)]
    with pytest.raises(TransferError, match="120000 bytes are kept, run the same command to go on"):
        run(download, patience=Patience(attempts=1))
    assert not download.path.exists()
    run(download)
    assert server.ranges == [None, "bytes=120000-"]
    assert_complete(download)


def test_a_server_that_ignores_ranges_is_read_from_the_start(download, server):
    server.tricks = [drop_after(server, 100_000), lambda request: server.answer(request, ranges=False)]
    run(download)
    assert_complete(download)


def test_a_server_that_always_stops_at_the_same_place_is_given_up(download, server):
    server.tricks = [drop_after(server, 100_000, ranges=False) for _ in range(10)]
    with pytest.raises(TransferError, match=r"gave up after 4 attempts .*ended after 100000 of 300"):
        run(download)
    assert len(server.ranges) == 4
    assert not download.path.exists()


def test_a_file_that_changed_in_between_is_read_from_the_start(download, server):
    server.tricks = [drop_after(server, 100_000)]
    with pytest.raises(TransferError):
        run(download, patience=Patience(attempts=1))
    server.content, server.etag = make_zip(seed=1), '"v2"'
    run(download)
    assert_complete(download, make_zip(seed=1))


def test_a_changed_file_is_noticed_by_its_size_where_there_is_no_etag(download, server):
    server.etag = None
    server.tricks = [drop_after(server, 100_000)]
    with pytest.raises(TransferError):
        run(download, patience=Patience(attempts=1))
    server.content = make_zip(seed=1, num_bytes=200_000)
    run(download)
    assert_complete(download, server.content)


@pytest.mark.parametrize("content_range", ["bytes 0-300141/300142", "bytes 99999-5/6", "pages 1-2/3", ""])
def test_a_wrong_range_is_not_appended(download, server, content_range):
    server.tricks = [
        drop_after(server, 100_000),
        lambda request: send(request, 206, {"Content-Range": content_range}, b"x" * 1000),
    ]
    run(download)
    assert_complete(download)


def test_an_answer_longer_than_the_file_is_not_accepted(download, server):
    rest = len(CONTENT) - 100_000
    content_range = f"bytes 100000-{len(CONTENT) - 1}/{len(CONTENT)}"
    server.tricks = [
        drop_after(server, 100_000),
        lambda request: send(request, 206, {"Content-Range": content_range}, b"x" * (rest + 7)),
    ]
    run(download)
    assert_complete(download)


def test_bytes_of_unknown_origin_are_not_continued(download, server):
    download.partial.write_bytes(b"PK of something else")
    run(download)
    assert server.ranges == [None]
    assert_complete(download)


def test_a_partial_file_of_another_mirror_is_not_continued(download, server):
    server.tricks = [drop_after(server, 100_000)]
    with pytest.raises(TransferError):
        run(download, patience=Patience(attempts=1))
    other = Download(url=f"{server.url}/mirror/mouse.zip", path=download.path)
    run(other)
    assert server.ranges == [None, None]
    assert_complete(download)


def test_a_partial_file_that_has_everything_is_completed_without_reading_more(download, server):
    server.tricks = [drop_after(server, len(CONTENT) - 1)]
    with pytest.raises(TransferError):
        run(download, patience=Patience(attempts=1))
    with download.partial.open("ab") as file:
        file.write(CONTENT[-1:])
    run(download)
    assert server.ranges[-1] == f"bytes={len(CONTENT)}-"
    assert_complete(download)


def test_a_partial_file_longer_than_the_file_starts_again(download, server):
    server.tricks = [drop_after(server, 100_000)]
    with pytest.raises(TransferError):
        run(download, patience=Patience(attempts=1))
    with download.partial.open("ab") as file:
        file.write(bytes(len(CONTENT)))
    run(download)
    assert_complete(download)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_missing_file_is_an_error_at_once(download, server, status):
    server.tricks = [lambda request: send(request, status, {})]
    with pytest.raises(TransferError, match=rf"mouse\.zip: the server answers {status} .*--base-url"):
        run(download)
    assert len(server.ranges) == 1


def test_an_overloaded_server_is_asked_again_after_growing_waits(download, server):
    server.tricks = [
        lambda request: send(request, 503, {}),
        lambda request: send(request, 500, {}),
        lambda request: send(request, 429, {"Retry-After": "17"}),
    ]
    waits, _ = run(download)
    assert waits == [1.0, 2.0, 17.0]
    assert_complete(download)


def test_a_server_that_stays_overloaded_is_given_up(download, server):
    server.tricks = [lambda request: send(request, 503, {"Retry-After": "9999"})] * 9
    with pytest.raises(TransferError, match=r"gave up after 4 attempts without progress .*503"):
        run(download)


def test_a_server_that_is_not_there_is_given_up(download, server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(TransferError, match=r"gave up after 4 attempts without progress .*no connection"):
        run(download)


def test_a_silent_server_is_left_after_the_timeout(download, server):
    release = threading.Event()

    def hang(request):
        release.wait(5)
        return False

    server.tricks = [hang]
    patience = Patience(attempts=2, first_wait_seconds=0.0, timeout_seconds=0.2)
    waits, _ = run(download, patience=patience)
    release.set()
    assert len(waits) == 1
    assert_complete(download)


def test_a_web_page_instead_of_the_zip_is_named(download, server):
    page = b"<!doctype html><title>Sign in</title>"
    server.tricks = [lambda request: send(request, 200, {"Content-Type": "text/html"}, page)]
    with pytest.raises(TransferError, match=r"answered with text/html .*but must be a zip"):
        run(download)
    assert not download.path.exists()


def test_a_short_file_the_server_calls_complete_is_refused(download, server):
    server.content = CONTENT[:-500]
    with pytest.raises(TransferError, match=r"is not a complete zip; it is kept as .*rejected"):
        run(download)
    assert not download.path.exists()
    server.content = CONTENT
    run(download)
    assert download.path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_set_aside(download, server):
    right = hashlib.sha256(CONTENT).hexdigest()
    server.content = make_zip(seed=1)
    expected = Download(url=download.url, path=download.path, sha256=right)
    with pytest.raises(TransferError, match=f"must have {right}"):
        run(expected)
    assert not download.path.exists()
    server.content = CONTENT
    run(expected)
    assert download.path.read_bytes() == CONTENT


def test_a_damaged_complete_file_is_refused(download):
    download.path.write_bytes(b"PK")
    with pytest.raises(TransferError, match=r"mouse\.zip has 2 bytes, but is not a complete zip; remove it"):
        run(download)


def test_one_file_is_downloaded_by_one_process_only(download):
    patience = Patience(attempts=1)

    def second(have, total):
        with pytest.raises(TransferError, match="by another process"):
            fetch(download, patience=patience, on_progress=lambda *_: None)

    fetch(download, patience=patience, on_progress=second)
    assert_complete(download)


def test_a_disk_without_room_is_refused_before_the_first_byte(download, server):
    size = len(CONTENT)
    assert check_space([download], patience=PATIENCE, free_bytes=size) == size
    with pytest.raises(TransferError, match=r"0\.0 GB free, but 0\.0 GB are to come; make room"):
        check_space([download], patience=PATIENCE, free_bytes=size - 1)
    download.partial.write_bytes(CONTENT[:1000])
    assert check_space([download], patience=PATIENCE, free_bytes=size) == size - 1000
    assert server.ranges == []


def test_the_expected_size_counts_where_the_server_does_not_say(download, server):
    server.knows_head = False
    expected = Download(url=download.url, path=download.path, expected_bytes=5_000_000_000)
    with pytest.raises(TransferError, match=r"1\.0 GB free, but 5\.0 GB are to come"):
        check_space([expected], patience=PATIENCE, free_bytes=1_000_000_000)


def test_other_protocols_than_http_are_refused(tmp_path):
    with pytest.raises(ValueError, match="url is 'file:///etc/passwd', but must start with https"):
        Download(url="file:///etc/passwd", path=tmp_path / "a.zip")


def run_script(*arguments: str):
    command = [sys.executable, str(ROOT / "data" / "download.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_the_script_prints_the_licence_and_downloads_by_letter(server, tmp_path):
    done = run_script("f", "dynamic29623", "--to", str(tmp_path), "--base-url", server.url)
    assert done.returncode == 0, done.stderr
    assert "CC BY-NC-ND 4.0" in done.stdout
    assert "contact them before you use the data" in done.stdout
    names = {mouse.session for mouse in PUBLIC_MICE if mouse.letter in "FG"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.zip" for name in names}
    assert f"python data/convert.py {tmp_path}" in done.stdout


def test_the_script_tries_every_mouse_and_fails_if_one_does(server, tmp_path):
    server.tricks = [lambda request: send(request, 404, {})]
    done = run_script("F", "G", "--to", str(tmp_path), "--base-url", server.url)
    assert done.returncode == 1
    assert "the server answers 404" in done.stderr
    assert "1 of 2 recordings are complete" in done.stdout


def test_the_script_refuses_an_unknown_mouse_without_asking_the_server(server, tmp_path):
    done = run_script("dynamic29155", "--to", str(tmp_path), "--base-url", server.url)
    assert done.returncode == 1
    assert "the nearest is 'dynamic29" in done.stderr
    assert json.dumps(server.ranges) == "[]"
