import multiprocessing
import random
import time

import pytest
from hpo_search import EPOCHS, read_log, search, slow_search, told
from optuna.trial import TrialState

TOTAL, KILLS = 48, 20


def start(target, *arguments):
    """Start a process that has imported everything already: it is a fork of one that does nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpo_search"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_driver_killed_20_times_tells_what_an_uninterrupted_one_tells(tmp_path):
    undisturbed = told(search(tmp_path / "undisturbed", total=TOTAL))
    root, pauses, kills = tmp_path / "disturbed", random.Random(3), 0
    root.mkdir()
    while kills < KILLS:
        before = len(read_log(root / "log"))
        process = start(slow_search, root, TOTAL)
        while process.is_alive() and len(read_log(root / "log")) == before:
            time.sleep(0.002)
        time.sleep(pauses.uniform(0.0, 0.12))
        assert process.is_alive(), f"all was done after {kills} kills: the test must be made longer"
        process.kill()
        process.join()
        kills += 1
    trials = search(root, total=TOTAL)
    assert told(trials) == undisturbed
    trained = [tuple(line) for line in read_log(root / "log")]
    assert len(trained) == len(set(trained))
    told_epochs = {
        (f"{trial.number:04d}", str(epoch)) for trial in trials for epoch in trial.intermediate_values
    }
    assert set(trained) == told_epochs
    assert any(trial.state is TrialState.PRUNED for trial in trials)
    assert any(len(trial.intermediate_values) == EPOCHS for trial in trials)
