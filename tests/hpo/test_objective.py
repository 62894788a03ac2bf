"""What a worker does with a run: too little memory, an epoch without end, a process without a driver."""

import multiprocessing
import time

import pytest
from training_runs import tiny_spec

from hpo.hanging import HUNG_FILE, HangWatch, why_it_hung
from hpo.memory import MEMORY_FILE, too_many_clips
from hpo.objective import TrainingObjective, alone_in
from training.ranks import Ranks
from training.results import Outcome
from training.run_folder import read_json, write_json


def objective_for(recordings, **more):
    return TrainingObjective(
        store=recordings[0].store, sessions=tuple(recording.session for recording in recordings), **more
    )


def go_on(_report):
    return True


def train(objective, spec, folder):
    objective(spec, folder, go_on)


def test_a_process_with_too_little_memory_ends_itself_and_halves_its_clips(recordings, tmp_path):
    """Batches of 4, 2 and 1 clips are too many; then there is nothing left to try."""
    objective = objective_for(recordings, memory_bytes=1)
    spec = tiny_spec(epochs=1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpo_search", "training_runs"])
    for clips in (3, 1):
        process = context.Process(target=train, args=(objective, spec, tmp_path / "0000"))
        process.start()
        process.join()
        assert process.exitcode == 137
        assert read_json(tmp_path / "0000" / MEMORY_FILE) == {"too_many": clips}
    result = objective(spec, tmp_path / "0000", go_on)
    assert result.outcome is Outcome.INFEASIBLE
    assert result.error == "out of memory with a single clip at a time"


def test_a_process_that_finishes_no_epoch_in_time_ends_itself_and_says_where_it_was(recordings, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpo_search", "training_runs"])
    # No epoch takes a millisecond only.
    objective = objective_for(recordings, run_timeout_seconds=0.001)
    process = context.Process(target=train, args=(objective, tiny_spec(epochs=1), tmp_path / "0000"))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert why_it_hung(tmp_path / "0000").startswith("it finished no epoch for 0:00:00.001")
    assert "objective.py" in (tmp_path / "0000" / HUNG_FILE).read_text()
    patient = objective_for(recordings, run_timeout_seconds=600.0)
    assert patient(tiny_spec(epochs=2), tmp_path / "0000", go_on).outcome is Outcome.FINISHED
    assert why_it_hung(tmp_path / "0000") is None


def answer_slowly(folder, *, seconds):
    with HangWatch(folder, limit_seconds=0.5) as watch:
        watch.between(lambda _: time.sleep(seconds) is None)(None)


def test_waiting_for_the_drivers_answer_is_not_hanging(tmp_path):
    process = multiprocessing.get_context("forkserver").Process(
        target=answer_slowly, args=(tmp_path,), kwargs={"seconds": 1.0}
    )
    process.start()
    process.join()
    assert process.exitcode == 0


def test_smaller_parts_give_nearly_the_same_score(recordings, tmp_path):
    spec = tiny_spec(epochs=1)
    whole = objective_for(recordings)(spec, tmp_path / "0000", go_on)
    write_json(tmp_path / "0001" / MEMORY_FILE, {"too_many": 3})
    assert too_many_clips(tmp_path / "0001") == 3
    parts = objective_for(recordings)(spec, tmp_path / "0001", go_on)
    assert parts.spec == spec
    assert parts.score == pytest.approx(whole.score, abs=0.02)


def test_an_interrupted_run_tells_its_epochs_again_and_goes_on(recordings, tmp_path):
    objective, spec, told = objective_for(recordings), tiny_spec(epochs=3), []

    def until(last):
        def on_epoch(report):
            told.append((report.epoch, report.score))
            return report.epoch < last

        return on_epoch

    first = objective(spec, tmp_path / "0000", until(2))
    assert first.outcome is Outcome.PRUNED
    second = objective(spec, tmp_path / "0000", until(99))
    assert second.outcome is Outcome.FINISHED
    assert [epoch for epoch, _ in told] == [1, 2, 1, 2, 3]
    assert told[:2] == told[2:4]


def hold(folder, held):
    with alone_in(folder, Ranks()):
        held.set()
        time.sleep(60)


def test_a_run_waits_for_a_process_that_still_trains_it(tmp_path):
    context = multiprocessing.get_context("forkserver")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    entered = context.Event()
    second = context.Process(target=hold, args=(tmp_path, entered))
    second.start()
    assert not entered.wait(1.0)
    process.kill()
    assert entered.wait(60)
    second.kill()
    process.join()
    second.join()
