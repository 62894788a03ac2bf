"""A search watched from a laptop: cluster files, tokens, and a head whose connection breaks."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from hpo import remote
from hpo.cluster_file import ClusterError, ClusterFile
from hpo.head import Head, NoConnectionError
from hpo.search import parse_arguments

ROOT = Path(__file__).parents[2]
TOKEN = "t" * 32


def local_file(folder, **changes):
    config = yaml.safe_load((ROOT / "cluster.local.yaml").read_text()) | changes
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_project_and_what_it_runs_on_are_read_from_the_shipped_files():
    aws = ClusterFile.read(ROOT / "cluster.yaml")
    assert (aws.provider, aws.project, aws.gpus, aws.cpus, aws.min_workers) == ("aws", "~/striate", 8, 64, 0)
    local = ClusterFile.read(ROOT / "cluster.local.yaml")
    assert (local.provider, local.gpus, local.min_workers) == ("local", 0, 2)
    assert local.workers == ("192.168.1.11", "192.168.1.12")
    assert local.token_file == Path.home() / ".striate/auth_token"


HOSTILE = {
    "an object of Python": "!!python/object/apply:os.system ['touch {proof}']",
    "another object of Python": "provider: !!python/object/new:os.system ['touch {proof}']",
    "a module of Python": "file_mounts: !!python/module:os",
    "no YAML": "a: [",
    "a list": "- 1",
    "a number": "7",
    "nothing": "",
    "not text": "\x00",
    "no provider": "file_mounts: {{~/striate: .}}",
    "mounts that are a number": "provider: {{type: local}}\nfile_mounts: 7",
    "deep": "[" * 5000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_cluster_file_is_refused_and_nothing_in_it_runs(tmp_path, case):
    path = tmp_path / "cluster.yaml"
    path.write_text(HOSTILE[case].format(proof=tmp_path / "proof"))
    with pytest.raises(ClusterError, match=r"cluster\.yaml"):
        ClusterFile.read(path)
    assert not (tmp_path / "proof").exists()


def test_a_file_that_ships_no_project_or_token_is_refused(tmp_path):
    with pytest.raises(ClusterError, match="does not ship the project"):
        ClusterFile.read(local_file(tmp_path, file_mounts={"~/.striate": "~/.striate"}))
    with pytest.raises(ClusterError, match="does not ship a token"):
        ClusterFile.read(local_file(tmp_path, file_mounts={"~/striate": "."}))
    with pytest.raises(ClusterError, match="does not exist"):
        ClusterFile.read(tmp_path / "none.yaml")


def test_a_search_without_a_token_is_refused_before_anything_is_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    path = local_file(tmp_path, file_mounts={"~/striate": ".", "~/.striate": str(tmp_path / ".striate")})
    assert remote.remote_command(parse_arguments(["vivit", "--cluster", str(path)]), []) == 2
    assert "holds no token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["vivit", "--cluster", "c.yaml", "--runs", "3"], ["vivit", "--runs", "3"]),
        (["--cluster=c.yaml", "vivit"], ["vivit"]),
        (["vivit"], ["vivit"]),
    ],
)
def test_the_head_runs_the_same_command_without_the_cluster(arguments, expected):
    assert remote.without_cluster(arguments) == expected


class PretendHead:
    """What Ray's job API answers, from a table; breaks connections on demand."""

    def __init__(self):
        self.jobs, self.nodes, self.asked, self.break_next = {}, [], [], 0
        self.wants_token, self.logs = True, [""]

    def answer(self, handler, body):
        path = handler.path.split("?")[0]
        self.asked.append((handler.command, path))
        if self.wants_token and handler.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Unauthorized"}
        if path == "/api/v0/nodes":
            return 200, {"data": {"result": {"result": self.nodes}}}
        if path == "/api/jobs/" and body is not None:
            self.jobs[body["submission_id"]] = {**body, "status": "RUNNING", "logs": self.logs}
            return 200, {"submission_id": body["submission_id"]}
        if path == "/api/jobs/":
            return 200, [{**job, "start_time": at} for at, job in enumerate(self.jobs.values())]
        name, _, what = path.removeprefix("/api/jobs/").partition("/")
        if name not in self.jobs:
            return 404, {"error": f"Job {name} does not exist"}
        job = self.jobs[name]
        if what == "stop":
            job["status"] = "STOPPED"
            return 200, {"stopped": True}
        if what == "logs":
            if len(job["logs"]) > 1:
                job["logs"].pop(0)
            return 200, {"logs": job["logs"][0]}
        if len(job["logs"]) == 1 and job["status"] == "RUNNING":
            job["status"] = job.get("ends", "SUCCEEDED")
        return 200, {"status": job["status"], "message": job.get("message", "")}


@contextmanager
def served(pretend):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if pretend.break_next > 0:
                pretend.break_next -= 1
                self.connection.close()
                return
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if self.command == "POST" else None
            status, content = pretend.answer(self, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Head(port=server.server_port, token=TOKEN)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class FakeTunnel:
    opened = 0

    def open(self):
        self.opened += 1


@pytest.fixture
def pretend(monkeypatch):
    monkeypatch.setattr(remote, "_POLL_SECONDS", 0.01)
    return PretendHead()


def parsed(folder, *options):
    arguments = ["vivit", "--cluster", str(local_file(folder)), *options]
    return parse_arguments(arguments), arguments


def cluster_of(arguments):
    return ClusterFile.read(arguments.cluster)


def worker(cpus, gpus=0):
    resources = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    return {"state": "ALIVE", "is_head_node": False, "resources_total": resources}


def test_a_search_waits_for_workers_submits_once_and_shows_all_output(pretend, tmp_path, capsys):
    arguments, line = parsed(tmp_path, "--runs", "3", "--set", "model.num_heads=2; rm -rf /")
    pretend.nodes = [
        worker(4),
        worker(4),
        {**worker(9), "is_head_node": True},
        {**worker(9), "state": "DEAD"},
    ]
    with served(pretend) as head:
        connection = remote._Connection(FakeTunnel(), head)
        pretend.logs = ["", "run 0 started\n", "run 0 started\nrun 0 finished\n"]
        code = remote.search(connection, cluster_of(arguments), arguments, line)
    assert code == 0
    shown = capsys.readouterr().out
    assert shown.count("run 0 started\n") == 1
    assert shown.count("run 0 finished\n") == 1
    (job,) = pretend.jobs.values()
    assert "cd ~/striate && exec python hpo/search.py vivit --runs 3" in job["entrypoint"]
    # Of the living workers only; and what a shell would split or run stays one word.
    assert "--max-concurrent 8 --cpus-per-worker 1" in job["entrypoint"]
    assert "'model.num_heads=2; rm -rf /'" in job["entrypoint"]
    assert "--cluster" not in job["entrypoint"]


def test_watching_goes_on_where_a_broken_connection_left_off(pretend, monkeypatch, capsys):
    lines = [f"epoch {number}\n" for number in range(6)]
    pretend.jobs["job"] = {
        "submission_id": "job",
        "status": "RUNNING",
        "logs": ["".join(lines[:count]) for count in range(7)],
    }
    tunnel = FakeTunnel()
    with served(pretend) as head:
        connection = remote._Connection(tunnel, head)
        real, calls = Head.status, []

        def status(self, job):
            calls.append(job)
            if len(calls) in (2, 4):
                pretend.break_next = 1
            return real(self, job)

        monkeypatch.setattr(Head, "status", status)
        assert remote.watch(connection, "job") == 0
    assert tunnel.opened == 2
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("epoch")] == [
        f"epoch {number}" for number in range(6)
    ]
    assert shown.count("the search goes on, trying again") == 2


def test_the_same_command_attaches_and_another_one_does_not(pretend, tmp_path, capsys):
    arguments, line = parsed(tmp_path, "--runs", "3")
    mark = remote._mark(arguments, line)
    pretend.nodes = [worker(1), worker(1)]
    pretend.jobs[f"{mark}-1"] = {"submission_id": f"{mark}-1", "status": "SUCCEEDED", "logs": ["old\n"]}
    pretend.jobs[f"{mark}-2"] = {"submission_id": f"{mark}-2", "status": "RUNNING", "logs": ["", "live\n"]}
    with served(pretend) as head:
        connection = remote._Connection(FakeTunnel(), head)
        assert remote.search(connection, cluster_of(arguments), arguments, line) == 0
        assert "live\n" in capsys.readouterr().out
        assert len(pretend.jobs) == 2
        other, other_line = parsed(tmp_path, "--runs", "4")
        assert remote.search(connection, cluster_of(other), other, other_line) == 0
    assert len(pretend.jobs) == 3


def test_a_failed_search_fails_here_and_says_so(pretend, capsys):
    pretend.jobs["job"] = {
        "submission_id": "job",
        "status": "RUNNING",
        "ends": "FAILED",
        "message": "entrypoint exited with code 2\nmore",
        "logs": ["error: --runs is 0\n"],
    }
    with served(pretend) as head:
        assert remote.watch(remote._Connection(FakeTunnel(), head), "job") == 1
    shown = capsys.readouterr().out
    assert "error: --runs is 0" in shown
    assert "job: failed; entrypoint exited with code 2" in shown


def test_a_head_that_was_started_again_says_how_to_go_on(pretend, capsys):
    with served(pretend) as head:
        assert remote.watch(remote._Connection(FakeTunnel(), head), "search-vivit-1") == 1
    assert "the head does not know search-vivit-1: it was started again." in capsys.readouterr().out


def test_stopping_stops_what_runs(pretend, capsys):
    for name, status in (("a", "RUNNING"), ("b", "SUCCEEDED")):
        pretend.jobs[name] = {"submission_id": name, "status": status, "logs": ["", ""]}
    with served(pretend) as head:
        assert remote.stop_search(remote._Connection(FakeTunnel(), head)) == 0
    assert {name: job["status"] for name, job in pretend.jobs.items()} == {"a": "STOPPED", "b": "SUCCEEDED"}


def test_a_head_that_asks_for_no_token_is_refused(pretend):
    with served(pretend) as head:
        head.require_token()
        pretend.wants_token = False
        with pytest.raises(ClusterError, match="answers without a token"):
            head.require_token()


def test_a_wrong_token_and_a_dead_head_are_told_apart(pretend):
    with served(pretend) as head:
        with pytest.raises(ClusterError, match="refuses the token"):
            Head(port=head.port, token="wrong" * 5).jobs()
        port = head.port
    with pytest.raises(NoConnectionError):
        Head(port=port, token=TOKEN).jobs()


def test_missing_workers_are_waited_for_and_then_named(pretend, tmp_path, capsys):
    arguments, _ = parsed(tmp_path)
    pretend.nodes = [worker(1)]
    with served(pretend) as head, pytest.raises(ClusterError, match="1 of 2 workers"):
        remote._wait_for_workers(remote._Connection(FakeTunnel(), head), cluster_of(arguments), seconds=0.05)
    assert "1 of 2 workers are there, waiting" in capsys.readouterr().out


def test_gpus_of_the_file_decide_when_machines_come_on_demand(tmp_path):
    arguments = parse_arguments(["vivit", "--recordings", "/mnt/striate/store", "--cluster", "x"])
    cluster = ClusterFile.read(ROOT / "cluster.yaml")
    command = remote.remote_entrypoint(None, cluster, arguments, ["vivit"])
    assert "--gpus-per-run 1 --max-concurrent 8 --cpus-per-worker 8 --scale full" in command
