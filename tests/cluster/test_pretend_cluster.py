"""``ray up`` for real on four pretend machines: a search from the laptop, a machine that dies, ``ray down``.

Tests of several steps on one cluster, as a user's day would be: starting it costs more than most of them.
"""

import os
import shutil
import sqlite3
import time
from pathlib import Path

import optuna
import pretend_hosts
import pytest
from pretend_cluster import FAST_HEALTH_CHECKS, living_nodes, on_laptop, wait_until, write_cluster_file
from pretend_hosts import PretendHosts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(pretend_hosts.missing() is not None, reason=str(pretend_hosts.missing())),
]

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


@pytest.fixture
def day(recordings):
    # Not below pytest's folder: /tmp is hidden in the machines.
    base = Path("/var/lib") / f"striate-hosts-{os.getpid()}"
    environment = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", **FAST_HEALTH_CHECKS}
    with PretendHosts(names=("laptop", "head", *WORKERS), base=base, environment=environment) as hosts:
        shutil.copytree(recordings[0].store, hosts.shared / "store")
        day = Day(hosts)
        started = time.monotonic()
        day.laptop(f"ray up --yes --no-config-cache {day.file}")
        print(f"ray up: {time.monotonic() - started:.1f} s")
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


def a_search_from_the_laptop_runs_on_both_workers(day):
    printed = day.laptop(day.search("--runs 4 --max-epochs 3 --pruner none --name first"), timeout=900)
    assert "4 finished" in printed
    assert_counted_once(day, "first", runs=4, epochs=3)
    for worker in WORKERS:
        # Who trained has its own copy of the recordings.
        assert list((day.hosts.root(worker) / "var/tmp/striate/stores").glob("*/manifest.json")), worker
    assert not list(day.hosts.shared.glob("studies/*/.probe-*"))


def a_local_folder_is_refused_before_any_run_starts(day):
    command = day.search("--runs 2 --max-epochs 1 --name local --root /var/tmp/runs")
    printed = day.laptop(command, check=False, timeout=300)
    assert "is not shared by all 3 machines" in printed
    assert "w1-" in printed
    assert "STRIATE_STORAGE" in printed
    assert not list((day.hosts.root("head") / "var/tmp/runs/studies/local").glob("runs/*"))


def the_power_of_a_worker_is_cut_and_nothing_is_lost(day):
    epochs = 25
    options = f"--runs 3 --max-epochs {epochs} --pruner none --name cut"
    output = day.hosts.base / "output"
    search = day.start_search(options, output=output)
    try:
        wait_until(
            lambda: {0, 1} <= {run for run, done in day.epochs("cut").items() if len(done) >= 2},
            seconds=400,
            what="training on both workers",
        )
        day.hosts.power_off("w2")
        cut = time.monotonic()
        before = {run: len(done) for run, done in day.epochs("cut").items()}
        assert search.wait(timeout=900) == 0, output.read_text()[-3000:]
        print(f"measured: cut after epochs {before}, search ended {time.monotonic() - cut:.1f} s later")
    finally:
        day.end_programs()
    assert_counted_once(day, "cut", runs=3, epochs=epochs)


def a_machine_that_is_switched_on_again_joins_again(day):
    day.hosts.start("w2")
    switched_on = time.monotonic()
    wait_until(lambda: len(living_nodes(day.hosts)) == 3, seconds=400, what="joining of w2")
    print(f"measured: joined {time.monotonic() - switched_on:.1f} s after it was switched on")


def links_that_are_cut_lose_nothing(day):
    epochs = 25
    output = day.hosts.base / "output"
    options = f"--runs 3 --max-epochs {epochs} --pruner none --name links"
    search = day.start_search(options, output=output)
    try:
        wait_until(
            lambda: {0, 1} <= {run for run, done in day.epochs("links").items() if len(done) >= 2},
            seconds=400,
            what="training on both workers",
        )
        # Shorter than the head's patience: a pause.
        day.hosts.unplug("w1")
        time.sleep(3)
        day.hosts.plug("w1")
        assert len(living_nodes(day.hosts)) == 3
        # Longer: the machine counts as lost, also when its link comes back.
        day.hosts.unplug("w2")
        cut = time.monotonic()
        wait_until(lambda: living_nodes(day.hosts) == ["head", "w1"], seconds=120, what="missing of w2")
        print(f"measured: missed {time.monotonic() - cut:.1f} s after its link was cut")
        day.hosts.plug("w2")
        assert search.wait(timeout=900) == 0, output.read_text()[-3000:]
        print(f"measured: search ended {time.monotonic() - cut:.1f} s after the link was cut")
    finally:
        day.end_programs()
    assert_counted_once(day, "links", runs=3, epochs=epochs)


def the_laptop_goes_away_and_watches_again(day):
    first = day.hosts.base / "first"
    options = "--runs 2 --max-epochs 12 --pruner none --name away"
    search = day.start_search(options, output=first)
    wait_until(lambda: day.epochs("away"), seconds=400, what="a first epoch")
    day.end_programs()
    assert search.wait(timeout=60) != 0
    printed = day.laptop(day.search(options), timeout=900)
    assert "which runs already" in printed
    assert "2 finished" in printed
    assert_counted_once(day, "away", runs=2, epochs=12)


def the_pages_open_through_tunnels(day):
    output = day.hosts.base / "pages"
    line = f"cd ~/striate && exec python hpo/search.py ui --cluster {day.file}"
    pages = day.hosts.start_program("laptop", "bash", "-c", line, output=output)
    try:
        wait_until(lambda: "Ctrl-C" in output.read_text(), seconds=120, what="opening of the pages")
        for name in ("MLflow", "Ray dashboard"):
            url = next(line for line in output.read_text().splitlines() if line.startswith(name))
            url = url.removeprefix(name).split()[0]
            page = day.hosts.run("laptop", "curl", "-s", "-m", "20", url)
            assert "<html" in page.lower(), (name, page)
    finally:
        day.end_programs()
        pages.wait(timeout=60)


def down_leaves_no_process_of_ray_on_any_machine(day):
    printed = day.laptop(f"python hpo/search.py down --cluster {day.file}", timeout=200)
    for worker in WORKERS:
        assert f"{day.hosts.address(worker)}: stopped" in printed
        assert day.hosts.processes(worker, of="ray") == 0
    assert day.hosts.processes("head", of="raylet") == 0


A_DAY = (
    all_workers_join_and_nobody_gets_in_without_the_token,
    a_search_from_the_laptop_runs_on_both_workers,
    a_local_folder_is_refused_before_any_run_starts,
    the_laptop_goes_away_and_watches_again,
    the_pages_open_through_tunnels,
    down_leaves_no_process_of_ray_on_any_machine,
)
A_BAD_DAY = (
    all_workers_join_and_nobody_gets_in_without_the_token,
    the_power_of_a_worker_is_cut_and_nothing_is_lost,
    a_machine_that_is_switched_on_again_joins_again,
    links_that_are_cut_lose_nothing,
    down_leaves_no_process_of_ray_on_any_machine,
)


def go_through(day, steps):
    for step in steps:
        started = time.monotonic()
        step(day)
        print(f"{step.__name__.replace('_', ' ')}: {time.monotonic() - started:.1f} s")


def test_a_day_on_a_cluster(day):
    go_through(day, A_DAY)


@pytest.mark.skipif("STRIATE_LONG_TESTS" not in os.environ, reason="takes minutes: set STRIATE_LONG_TESTS=1")
def test_a_bad_day_on_a_cluster(day):
    go_through(day, A_BAD_DAY)
