"""The head of a running cluster, through an SSH tunnel that can be opened again: jobs and machines."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.confined import parse_json
from hpo.cluster_file import ClusterError, ClusterFile

DASHBOARD_PORT, MLFLOW_PORT = 8265, 5000
_OPEN_SECONDS = 60.0
_REQUEST_SECONDS = 20.0
_LARGEST_ANSWER = 2**26


def ray_program() -> str:
    """Return the path of the ``ray`` that belongs to this Python."""
    beside = Path(sys.executable).with_name("ray")
    return str(beside) if beside.exists() else "ray"


class Tunnel:
    """A port of the head on this machine's loopback; use as a context manager.

    Args:
        cluster: whose head.
        remote_port: on the head's loopback.
        local_port: here; a free one if None.
    """

    def __init__(self, cluster: ClusterFile, remote_port: int, *, local_port: int | None = None) -> None:
        self.remote_port = remote_port
        self.local_port = local_port or _free_port()
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def __enter__(self) -> "Tunnel":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Open it, or open it again.

        Raises:
            ClusterError: the head cannot be reached.
        """
        self.close()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the tunnel
        self._process = subprocess.Popen(
            [
                *(ray_program(), "dashboard", "--no-config-cache", str(self._cluster.path)),
                *("--port", str(self.local_port), "--remote-port", str(self.remote_port)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            # ssh is a child of ray: both are ended as one group.
            start_new_session=True,
        )
        deadline = time.monotonic() + _OPEN_SECONDS
        while not _answers(self.local_port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._said()
                self.close()
                raise ClusterError(f"the head of {self._cluster.path} cannot be reached: {said}")
            time.sleep(0.2)

    def close(self) -> None:
        """Close it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()
            self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def _said(self) -> str:
        assert self._output is not None
        self._output.seek(0)
        lines = [line.strip() for line in self._output.read().decode(errors="replace").splitlines()]
        errors = [line for line in lines if "rror" in line or "refused" in line or "denied" in line]
        last = (errors or [line for line in lines if line] or ["no answer"])[-1]
        return last[:300]


class UnknownJobError(ClusterError):
    """The head does not know a job: it was started again since."""


class NoConnectionError(Exception):
    """The tunnel broke or the head did not answer; another attempt may do better."""


@dataclass(slots=True)
class Head:
    """Ray's job API on the head (documented as its REST API).

    Attributes:
        port: of the tunnel.
        token: shown with every request.
    """

    port: int
    token: str

    def require_token(self) -> None:
        """Refuse a head that answers those who show no token.

        Raises:
            ClusterError: it does.
        """
        try:
            self._request("/api/jobs/", token="")
        except ClusterError:
            return
        raise ClusterError(
            "the cluster answers without a token, so anybody who reaches it can run code there: set "
            "RAY_AUTH_MODE=token as cluster.yaml does, and run `ray up` again"
        )

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs that were submitted, the newest first."""
        found: list[dict[str, Any]] = self._request("/api/jobs/")
        submitted = [job for job in found if job.get("submission_id")]
        return sorted(submitted, key=lambda job: -(job.get("start_time") or 0))

    def submit(self, entrypoint: str, *, submission_id: str) -> None:
        """Start a job on the head, under a name that it cannot have twice."""
        body = {"entrypoint": entrypoint, "submission_id": submission_id}
        try:
            self._request("/api/jobs/", body=body)
        except NoConnectionError:
            # It may have arrived before the connection broke.
            if submission_id not in {job["submission_id"] for job in self.jobs()}:
                raise

    def status(self, submission_id: str) -> tuple[str, str]:
        """Return a job's status (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED) and what is said of it.

        Raises:
            UnknownJobError: the head has forgotten it.
        """
        job: dict[str, Any] = self._request(f"/api/jobs/{submission_id}")
        return job["status"], job.get("message") or ""

    def output(self, submission_id: str) -> str:
        """Return everything a job has printed so far."""
        return str(self._request(f"/api/jobs/{submission_id}/logs").get("logs", ""))

    def stop(self, submission_id: str) -> None:
        """Ask a job to end."""
        self._request(f"/api/jobs/{submission_id}/stop", body={})

    def workers(self) -> list[dict[str, Any]]:
        """Return the living machines but the head, each with its resources."""
        answer = self._request("/api/v0/nodes?detail=1")
        nodes = answer["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"]]

    def _request(self, path: str, *, body: dict[str, Any] | None = None, token: str | None = None) -> Any:
        token = self.token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as response:  # noqa: S310
                return parse_json(response.read(_LARGEST_ANSWER) or b"null")
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2000).decode(errors="replace").strip()
            if error.code in (401, 403):
                raise ClusterError(
                    f"the head refuses the token ({error.code}): it must be the one that `ray up` shipped"
                ) from None
            if error.code >= 500 and "submission_id" not in text:
                raise NoConnectionError(f"{error.code}: {text[-300:]}") from None
            if error.code == 404 and path.startswith("/api/jobs/"):
                raise UnknownJobError(f"the head does not know {path.split('/')[3]}") from None
            raise ClusterError(f"the head answers {error.code} to {path}: {text[-300:]}") from None
        except (OSError, ValueError) as error:
            raise NoConnectionError(str(error)) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
