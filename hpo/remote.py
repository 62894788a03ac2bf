"""A search on a cluster, driven from a laptop: ``python hpo/search.py vivit --cluster cluster.yaml``.

The driver runs on the head as a job; this process only watches. It may be ended, and its connection may
break: the same command finds the job and goes on watching.
"""

import argparse
import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from data.command_line import FAILED, INTERRUPTED, MISUSED
from hpo.cluster_file import ClusterError, ClusterFile
from hpo.head import (
    DASHBOARD_PORT,
    MLFLOW_PORT,
    Head,
    NoConnectionError,
    Tunnel,
    UnknownJobError,
    ray_program,
)

COMMANDS = ("ui", "stop", "down")
"""Instead of a space, with ``--cluster``: open the pages, stop the search, end the cluster."""

_POLL_SECONDS = 1.0
_RECONNECT_SECONDS = 600.0
_LIVE = ("PENDING", "RUNNING")
_EXIT_CODE = {"SUCCEEDED": 0, "STOPPED": INTERRUPTED, "FAILED": FAILED}


def remote_command(parsed: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Do on a cluster what the command line says; return the exit code."""
    try:
        cluster = ClusterFile.read(parsed.cluster)
        if parsed.space == "down":
            return take_down(cluster)
        token = cluster.token()
        if parsed.space == "ui":
            return show_pages(cluster)
        with Tunnel(cluster, DASHBOARD_PORT) as tunnel:
            connection = _Connection(tunnel, Head(port=tunnel.local_port, token=token))
            connection.head.require_token()
            if parsed.space == "stop":
                return stop_search(connection)
            return search(connection, cluster, parsed, arguments)
    except ClusterError as error:
        _say(f"error: {error}")
        return MISUSED
    except KeyboardInterrupt:
        return INTERRUPTED


@dataclass(slots=True)
class _Connection:
    """The head behind a tunnel that may break."""

    tunnel: Tunnel
    head: Head

    def again(self, error: Exception) -> None:
        """Open the tunnel again, for as long as a laptop may sleep or a network be away.

        Raises:
            ClusterError: it stays closed.
        """
        _say(f"no connection ({error}); the search goes on, trying again")
        deadline = time.monotonic() + _RECONNECT_SECONDS
        while True:
            try:
                self.tunnel.open()
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(2.0)
            else:
                _say("connected again")
                return


def search(
    connection: _Connection, cluster: ClusterFile, parsed: argparse.Namespace, arguments: Sequence[str]
) -> int:
    """Submit a search, or find the one that the same command has submitted, and watch it."""
    mark = _mark(parsed, arguments)
    job = _find(connection.head, mark)
    if job is not None:
        _say(f"watching {job}, which runs already")
    else:
        _wait_for_workers(connection, cluster, seconds=60 * parsed.wait)
        entrypoint = remote_entrypoint(connection.head, cluster, parsed, arguments)
        job = f"{mark}-{int(time.time())}"
        connection.head.submit(entrypoint, submission_id=job)
        _say(f"submitted {job}: {entrypoint}")
    _say("Ctrl-C stops watching only; the same command watches again")
    try:
        return watch(connection, job)
    except KeyboardInterrupt:
        _say(
            f"\nnot watching any more; the search goes on. To stop it: python hpo/search.py stop "
            f"--cluster {cluster.path}"
        )
        return INTERRUPTED


def watch(connection: _Connection, job: str) -> int:
    """Print what a job prints until it ends, through any number of broken connections."""
    shown = 0
    while True:
        try:
            # Before its output, so that nothing is missed of a job that has ended.
            status, message = connection.head.status(job)
            text = connection.head.output(job)
        except NoConnectionError as error:
            connection.again(error)
            continue
        except UnknownJobError as error:
            _say(
                f"{error}: it was started again. Nothing that was reported is lost; the same command goes on"
            )
            return FAILED
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = max(shown, len(text))
        if status not in _LIVE:
            if status != "SUCCEEDED" and message:
                _say(f"{job}: {status.lower()}; {message.splitlines()[0]}")
            return _EXIT_CODE.get(status, FAILED)
        time.sleep(_POLL_SECONDS)


def stop_search(connection: _Connection) -> int:
    """Ask the searches of a cluster to stop; what was reported is kept, and the same command goes on."""
    live = [job["submission_id"] for job in connection.head.jobs() if job["status"] in _LIVE]
    for job in live:
        connection.head.stop(job)
        _say(f"stopping {job}")
    if not live:
        _say("nothing is running")
    return 0


def show_pages(cluster: ClusterFile) -> int:
    """Open MLflow's page and Ray's dashboard through tunnels until Ctrl-C."""
    with Tunnel(cluster, DASHBOARD_PORT) as dashboard, Tunnel(cluster, MLFLOW_PORT) as mlflow:
        _say(f"MLflow         http://127.0.0.1:{mlflow.local_port}")
        _say(
            f"Ray dashboard  http://127.0.0.1:{dashboard.local_port}"
            f"  (asks for the token in {cluster.token_file})"
        )
        _say("Ctrl-C closes them")
        while True:
            time.sleep(3600)


def take_down(cluster: ClusterFile) -> int:
    """End a cluster. Of machines one owns, Ray itself would leave processes on every worker."""
    done = subprocess.run([ray_program(), "down", "--yes", str(cluster.path)], check=False)
    if done.returncode != 0 or cluster.provider != "local":
        return done.returncode
    failed = 0
    for address in cluster.workers:
        key = [] if cluster.ssh_key is None else ["-i", str(cluster.ssh_key)]
        stopped = subprocess.run(
            [
                *("ssh", *key, "-o", "StrictHostKeyChecking=accept-new", "-o", "ConnectTimeout=10"),
                *(f"{cluster.ssh_user}@{address}", "bash -ic 'ray stop --force'"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        failed += stopped.returncode != 0
        _say(f"{address}: {'stopped' if stopped.returncode == 0 else stopped.stderr.strip()[-200:]}")
    return FAILED if failed else 0


def remote_entrypoint(
    head: Head, cluster: ClusterFile, parsed: argparse.Namespace, arguments: Sequence[str]
) -> str:
    """Return the command that the head runs: the same one, and what this cluster has to run on."""
    options = [*without_cluster(arguments), "--address", "auto"]
    gpus, cpus = cluster.gpus, cluster.cpus
    if not cpus:
        resources = [worker["resources_total"] for worker in head.workers()]
        gpus = int(sum(each.get("GPU", 0) for each in resources))
        cpus = int(sum(each.get("CPU", 0) for each in resources))
    per_run = parsed.workers_per_run
    if gpus and parsed.gpus_per_run is None:
        options += ["--gpus-per-run", str(per_run)]
    if parsed.max_concurrent is None:
        options += ["--max-concurrent", str(max((gpus or cpus) // per_run, 1))]
    if parsed.cpus_per_worker is None and gpus:
        options += ["--cpus-per-worker", str(max(cpus // gpus, 1))]
    elif parsed.cpus_per_worker is None:
        runs = parsed.max_concurrent or max(cpus // per_run, 1)
        options += ["--cpus-per-worker", str(max(cpus // (runs * per_run), 1))]
    if gpus and parsed.scale is None and parsed.recordings:
        options += ["--scale", "full"]
    # The job's own shell does not read .bashrc.
    environment = "test -f ~/.striate_environment && . ~/.striate_environment"
    return f"{environment}; cd {cluster.project} && exec python hpo/search.py {shlex.join(options)}"


def without_cluster(arguments: Sequence[str]) -> list[str]:
    """Return a command line without ``--cluster FILE``."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument == "--cluster":
            skip = not skip
        elif not argument.startswith("--cluster="):
            kept.append(argument)
    return kept


def _mark(parsed: argparse.Namespace, arguments: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join(without_cluster(arguments)).encode()).hexdigest()[:10]
    return f"search-{parsed.space}-{digest}"


def _find(head: Head, mark: str) -> str | None:
    for job in head.jobs():
        if job["submission_id"].startswith(mark) and job["status"] in _LIVE:
            return str(job["submission_id"])
    return None


def _wait_for_workers(connection: _Connection, cluster: ClusterFile, *, seconds: float) -> None:
    """Wait for the machines that are there without demand; `ray up` returns before they are."""
    deadline = time.monotonic() + seconds
    told = -1
    while True:
        try:
            count = len(connection.head.workers())
        except NoConnectionError as error:
            connection.again(error)
            continue
        if count >= cluster.min_workers:
            return
        if count != told:
            _say(f"{count} of {cluster.min_workers} workers are there, waiting")
            told = count
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{count} of {cluster.min_workers} workers are there after {seconds / 60:.3g} minutes; see "
                f"`ray exec {cluster.path} 'ray status'` for why. --wait sets the time"
            )
        time.sleep(_POLL_SECONDS)


def _say(text: str) -> None:
    print(text, flush=True)
