"""What breaks on a cluster of pretend machines, broken for real: power, links, Ray, MLflow, the head."""

import os
import time

import pretend_hosts
import pytest
import yaml
from pretend_cluster import living_nodes, wait_until
from pretend_day import (
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
    pytest.mark.skipif(
        "STRIATE_LONG_TESTS" not in os.environ, reason="takes minutes: set STRIATE_LONG_TESTS=1"
    ),
]


@pytest.fixture
def day(recordings):
    with a_day(recordings[0].store) as day:
        yield day


def the_power_of_a_worker_is_cut_and_nothing_is_lost(day):
    epochs = 25
    options = f"--runs 3 --max-epochs {epochs} --pruner none --name cut"
    output = day.hosts.base / "output"
    search = day.start_search(options, output=output)
    try:
        day.wait_for_training_on_both("cut")
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
        day.wait_for_training_on_both("links")
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


def a_raylet_is_killed_and_nothing_is_lost(day):
    epochs = 12
    output = day.hosts.base / "raylet"
    search = day.start_search(f"--runs 3 --max-epochs {epochs} --pruner none --name raylet", output=output)
    try:
        day.wait_for_training_on_both("raylet")
        day.hosts.run("w1", "pkill", "-KILL", "raylet")
        killed = time.monotonic()
        wait_until(lambda: living_nodes(day.hosts) == ["head", "w2"], seconds=120, what="missing of w1")
        print(f"measured: missed {time.monotonic() - killed:.1f} s after its raylet was killed")
        wait_until(lambda: len(living_nodes(day.hosts)) == 3, seconds=400, what="joining of w1")
        print(f"measured: joined {time.monotonic() - killed:.1f} s after its raylet was killed")
        assert search.wait(timeout=900) == 0, output.read_text()[-3000:]
        print(f"measured: search ended {time.monotonic() - killed:.1f} s after the raylet was killed")
    finally:
        day.end_programs()
    assert_counted_once(day, "raylet", runs=3, epochs=epochs)


def mlflow_hangs_for_a_minute_dies_and_comes_back(day):
    epochs = 40
    output = day.hosts.base / "mlflow"
    search = day.start_search(f"--runs 2 --max-epochs {epochs} --pruner none --name mlflow", output=output)
    try:
        day.wait_for_training_on_both("mlflow")
        day.hosts.run("head", "pkill", "-STOP", "-f", "mlflow")
        hung = time.monotonic()
        before = sum(map(len, day.epochs("mlflow").values()))
        time.sleep(60)
        during = sum(map(len, day.epochs("mlflow").values())) - before
        assert during >= 3
        print(f"measured: {during} epochs in the minute in which MLflow hung")
        day.hosts.run("head", "pkill", "-KILL", "-f", "mlflow")
        start = yaml.safe_load((day.hosts.root("laptop") / "home/cluster.yaml").read_text())
        day.on_head(start["head_start_ray_commands"][-1])
        assert search.wait(timeout=900) == 0, output.read_text()[-3000:]
        print(f"measured: search ended {time.monotonic() - hung:.1f} s after MLflow hung")
    finally:
        day.end_programs()
    assert "MLflow does not answer, will try again" in output.read_text()
    assert_counted_once(day, "mlflow", runs=2, epochs=epochs)


def the_head_is_lost_and_the_same_commands_go_on(day):
    epochs = 25
    output = day.hosts.base / "head-1"
    options = f"--runs 3 --max-epochs {epochs} --pruner none --name head"
    search = day.start_search(options, output=output)
    try:
        day.wait_for_training_on_both("head")
        day.hosts.power_off("head")
        lost = time.monotonic()
        before = {run: len(done) for run, done in day.epochs("head").items()}
        wait_until(lambda: "no connection" in output.read_text(), seconds=200, what="missing of the head")
        print(f"measured: the laptop said so {time.monotonic() - lost:.1f} s after the head was lost")
        day.hosts.start("head")
        day.up()
        assert search.wait(timeout=300) == 1, output.read_text()[-3000:]
        assert "it was started again" in output.read_text()
        printed = day.laptop(day.search(options), timeout=900)
        print(f"measured: lost after epochs {before}, search ended {time.monotonic() - lost:.1f} s later")
    finally:
        day.end_programs()
    assert "run   0  goes on" in printed
    assert_counted_once(day, "head", runs=3, epochs=epochs)


A_BAD_DAY = (
    all_workers_join_and_nobody_gets_in_without_the_token,
    the_power_of_a_worker_is_cut_and_nothing_is_lost,
    a_machine_that_is_switched_on_again_joins_again,
    links_that_are_cut_lose_nothing,
    a_raylet_is_killed_and_nothing_is_lost,
    down_leaves_no_process_of_ray_on_any_machine,
)

A_BAD_DAY_OF_THE_HEAD = (
    all_workers_join_and_nobody_gets_in_without_the_token,
    mlflow_hangs_for_a_minute_dies_and_comes_back,
    the_head_is_lost_and_the_same_commands_go_on,
    down_leaves_no_process_of_ray_on_any_machine,
)


def test_a_bad_day_on_a_cluster(day):
    go_through(day, A_BAD_DAY)


def test_a_bad_day_of_the_head(day):
    go_through(day, A_BAD_DAY_OF_THE_HEAD)
