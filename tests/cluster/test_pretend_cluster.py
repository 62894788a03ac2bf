"""``ray up`` for real on four pretend machines: searches from the laptop, an ensemble, ``ray down``.

A test of several steps on one cluster, as a user's day would be: starting it costs more than most of them.
"""

import json
import os

import pretend_hosts
import pytest
from pretend_cluster import wait_until
from pretend_day import (
    WORKERS,
    a_day,
    all_workers_join_and_nobody_gets_in_without_the_token,
    assert_counted_once,
    down_leaves_no_process_of_ray_on_any_machine,
    go_through,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(pretend_hosts.missing() is not None, reason=str(pretend_hosts.missing())),
]


@pytest.fixture
def day(recordings):
    with a_day(recordings[0].store) as day:
        yield day


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


def the_laptop_goes_away_watches_again_and_stops(day):
    first, second = day.hosts.base / "first", day.hosts.base / "second"
    options = "--runs 2 --max-epochs 12 --pruner none --name away"
    search = day.start_search(options, output=first)
    wait_until(lambda: day.epochs("away"), seconds=400, what="a first epoch")
    day.end_programs()
    assert search.wait(timeout=60) != 0
    search = day.start_search(options, output=second)
    wait_until(lambda: "which runs already" in second.read_text(), seconds=200, what="watching again")
    assert "stopping search-vivit-" in day.laptop(f"python hpo/search.py stop --cluster {day.file}")
    assert search.wait(timeout=200) == 130, second.read_text()[-3000:]
    assert "ended early: you asked for it" in second.read_text()
    assert any(trial.state.name == "RUNNING" for trial in day.runs("away"))
    printed = day.laptop(day.search(options), timeout=900)
    assert "2 finished" in printed
    assert_counted_once(day, "away", runs=2, epochs=12)


def files_are_fetched_from_the_head(day):
    day.on_head("cd ~/striate && python hpo/search.py report first")
    for name in ("report.html", "runs.csv"):
        day.laptop(f"ray rsync-down {day.file} /mnt/striate/studies/first/{name} /var/tmp/{name}")
    fetched = day.hosts.root("laptop") / "var/tmp"
    assert len((fetched / "runs.csv").read_text().splitlines()) == 5
    assert "<html" in (fetched / "report.html").read_text()


def an_ensemble_is_built_on_the_cluster(day):
    build = (
        "cd ~/striate && python ensembles/build.py seeds factorized --seeds 2 --set epochs=2 --scale demo "
        "--recordings /mnt/striate/store --root /mnt/striate --name pair --address auto --max-concurrent 2 "
        "--cpus-per-member 1"
    )
    printed = day.on_head(build, timeout=900)
    manifest = json.loads((day.hosts.shared / "builds/pair/ensemble.json").read_text())
    assert [member["outcome"] for member in manifest["members"]] == ["finished"] * 2, printed[-3000:]
    assert (day.hosts.shared / "builds/pair/report/report.html").is_file()
    # The head has no cores: what was made was made by the workers.
    assert len(list(day.hosts.shared.glob("builds/pair/members/*/result.json"))) == 2


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


# Minutes more: set STRIATE_LONG_TESTS=1.
MORE = (
    files_are_fetched_from_the_head,
    an_ensemble_is_built_on_the_cluster,
    the_laptop_goes_away_watches_again_and_stops,
)
A_DAY = (
    all_workers_join_and_nobody_gets_in_without_the_token,
    a_search_from_the_laptop_runs_on_both_workers,
    a_local_folder_is_refused_before_any_run_starts,
    *(MORE if "STRIATE_LONG_TESTS" in os.environ else ()),
    the_pages_open_through_tunnels,
    down_leaves_no_process_of_ray_on_any_machine,
)


def test_a_day_on_a_cluster(day):
    go_through(day, A_DAY)
