"""A day on a pretend cluster: machines, the cluster file on the laptop, and what a user does with them."""

import os
import shlex
import shutil
import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path

import optuna
from pretend_cluster import FAST_HEALTH_CHECKS, living_nodes, on_laptop, wait_until, write_cluster_file
from pretend_hosts import PretendHosts

SEARCH = "python hpo/search.py vivit --recordings /mnt/striate/store --scale demo"
WORKERS = ("w1", "w2")


class Day:
    """The machines, and the cluster file on the laptop."""

    def __init__(self, hosts):
        self.hosts = hosts
        self.file = write_cluster_file(hosts, workers=WORKERS)

    def laptop(self, command, **options):
        return on_laptop(self.hosts, command, **options)

    def search(self, options):
        return f"{SEARCH} --cluster {self.file} {options}"

    def start_search(self, options, *, output):
        line = f"cd ~/striate && exec {self.search(options)}"
        return self.hosts.start_program("laptop", "bash", "-c", line, output=output)

    def on_head(self, command, **options):
        """Run a command on the head as docs/operations.md says: from the laptop, with ``ray exec``."""
        return self.laptop(f"ray exec --no-config-cache {self.file} {shlex.quote(command)}", **options)

    def up(self):
        started = time.monotonic()
        self.laptop(f"ray up --yes --no-config-cache {self.file}")
        print(f"measured: ray up took {time.monotonic() - started:.1f} s")

    def wait_for_training_on_both(self, name):
        wait_until(
            lambda: {0, 1} <= {run for run, done in self.epochs(name).items() if len(done) >= 2},
            seconds=400,
            what="training on both workers",
        )

    def end_programs(self):
        """Kill what was started on the laptop; killing nsenter, outside, would leave it running in there."""
        self.hosts.run("laptop", "pkill", "-KILL", "-f", "search.py", check=False)

    def study(self, name):
        return self.hosts.shared / "studies" / name

    def runs(self, name):
        url = f"sqlite:///{self.study(name) / 'study.db'}"
        return optuna.load_study(study_name=None, storage=url).trials

    def epochs(self, name):
        """Return the epochs that the study of a live search has, by run."""
        path = self.study(name) / "study.db"
        if not path.exists():
            return {}
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30) as storage:
            rows = storage.execute(
                "select t.number, v.step from trials t join trial_intermediate_values v using (trial_id)"
            ).fetchall()
        found = {}
        for number, step in rows:
            found.setdefault(number, []).append(step)
        return found


@contextmanager
def a_day(store):
    """Switch four machines on, put recordings on their storage and start the cluster."""
    # Not below pytest's folder: /tmp is hidden in the machines.
    base = Path("/var/lib") / f"striate-hosts-{os.getpid()}"
    environment = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", **FAST_HEALTH_CHECKS}
    with PretendHosts(names=("laptop", "head", *WORKERS), base=base, environment=environment) as hosts:
        shutil.copytree(store, hosts.shared / "store")
        day = Day(hosts)
        day.up()
        yield day


def assert_counted_once(day, name, *, runs, epochs):
    """Every run finished, every epoch in the study and in MLflow exactly once."""
    trials = day.runs(name)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * runs
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, epochs + 1))
    with sqlite3.connect(f"file:{day.hosts.shared / 'mlflow.db'}?mode=ro", uri=True, timeout=30) as storage:
        rows = storage.execute(
            "select t.value, m.step, count(*) from metrics m join tags t using (run_uuid) "
            "join tags s using (run_uuid) where t.key = 'run' and s.key = 'study' and s.value = ? "
            "and m.key = 'loss' group by t.value, m.step",
            (name,),
        ).fetchall()
    wanted = {(str(run), epoch, 1) for run in range(runs) for epoch in range(1, epochs + 1)}
    assert set(rows) == wanted


def all_workers_join_and_nobody_gets_in_without_the_token(day):
    wait_until(lambda: len(living_nodes(day.hosts)) == 3, seconds=180, what="joining of both workers")
    # From the laptop's place on the network, the pages of the head do not exist.
    for port in (8265, 5000):
        probe = f"exec 3<>/dev/tcp/{day.hosts.address('head')}/{port}"
        assert "refused" in day.hosts.run("laptop", "bash", "-c", probe, check=False)
    on_head = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert day.hosts.run("head", "bash", "-c", on_head) == "401"
    without = (
        "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=wrongwrongwrongwrong ray list nodes --address 127.0.0.1:6379"
    )
    assert "ALIVE" not in day.hosts.run("head", "bash", "-c", without, check=False)


def down_leaves_no_process_of_ray_on_any_machine(day):
    printed = day.laptop(f"python hpo/search.py down --cluster {day.file}", timeout=200)
    for worker in WORKERS:
        assert f"{day.hosts.address(worker)}: stopped" in printed
        assert day.hosts.processes(worker, of="ray") == 0
    assert day.hosts.processes("head", of="raylet") == 0


def go_through(day, steps):
    """Do one step after the other, and say how long each took."""
    for step in steps:
        started = time.monotonic()
        step(day)
        print(f"{step.__name__.replace('_', ' ')}: {time.monotonic() - started:.1f} s")
