"""Ray's own memory monitor, which is on where others have started Ray, and ends Tune's loop in Ray 2.60."""

import os
from pathlib import Path

import pytest
from hpo_search import EPOCHS, TroubledObjective, read_log, search_on_ray
from optuna.trial import TrialState

from hpo.cluster import ClusterConfig, start_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# More than Ray and two runs take.
ROOM_BYTES = 3 * 10**9
# By so much may the memory of other programs shrink before a run that takes all finds too much of it.
SLACK_BYTES = 4 * 10**9


@pytest.fixture
def monitored_ray(monkeypatch):
    """Ray whose monitor acts when the machine's memory is some GB fuller than it is now."""
    import ray

    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    memory = {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines}
    total, free = memory["MemTotal"], memory["MemAvailable"]
    needed = ROOM_BYTES + SLACK_BYTES + 10**9
    if free < needed:
        pytest.skip(f"{free / 1e9:.1f} GB are free, but this needs {needed / 1e9:.0f}")
    threshold = (total - free + ROOM_BYTES) / total
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{threshold:.4f}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    ray.shutdown()
    start_ray(ClusterConfig(slots=2))
    yield ray
    ray.shutdown()


@pytest.mark.usefixtures("monitored_ray")
def test_a_run_that_rays_memory_monitor_kills_is_made_again_and_the_search_goes_on(tmp_path, caplog):
    objective = TroubledObjective(
        log=tmp_path / "log", troubles={1: "takes all memory"}, most_bytes=ROOM_BYTES + SLACK_BYTES
    )
    # The monitor may take innocent runs as well.
    config = ClusterConfig(slots=2, lane="actors", max_restarts=5)
    trials, driver = search_on_ray(tmp_path, total=5, objective=objective, config=config, pruner="none")
    assert driver.stopping is None
    reasons = [trial.user_attrs.get("reason") for trial in trials]
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}, reasons
    assert [sorted(trial.intermediate_values) for trial in trials] == [list(range(1, EPOCHS + 1))] * 5
    attempts = (tmp_path / "study" / "runs" / "0001" / "attempts").read_text().split()
    assert len(attempts) > 1
    assert len(set(attempts)) == len(attempts)
    trained = [tuple(line) for line in read_log(tmp_path / "log")]
    assert len(trained) == len(set(trained))
    # Tune's loop did not end: what starts Ray again was not needed.
    assert "Ray stopped" not in caplog.text
