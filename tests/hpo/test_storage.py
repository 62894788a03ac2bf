"""What a study keeps in memory is what its database says, and a run is asked for in one transaction."""

import optuna
import pytest
from hpo_search import EPOCHS, FastObjective, make_report, make_result, open_study, search
from optuna.trial import TrialState
from sqlalchemy import event

from hpo.storage import OneWriterStorage
from hpo.study import read_trials, storage_url
from training.results import Outcome


def described(trials):
    return [
        (
            trial.number,
            trial.state,
            trial.values,
            trial.params,
            trial.distributions,
            trial.intermediate_values,
            trial.user_attrs,
            trial.system_attrs,
        )
        for trial in trials
    ]


def test_memory_and_database_say_the_same_while_runs_are_in_flight_and_after(tmp_path):
    search(tmp_path, total=12, check=lambda spec: "too wide" if spec.loader.batch_size > 6 else None)
    study = open_study(tmp_path)
    asked = study.ask(total=30)
    study.report(asked.number, make_report(asked.spec, 1))
    study._storage.sync()
    trials = study.trials()
    assert {trial.state for trial in trials} >= {TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED}
    # Another process reads the database.
    assert described(read_trials(study.folder)) == described(trials)
    study.close()
    # And so does the next driver.
    again = open_study(tmp_path)
    assert described(again.trials()) == described(trials)
    again.close()


def test_a_run_is_asked_for_in_one_transaction(tmp_path):
    study = open_study(tmp_path, pruner="none")
    # The first one was enqueued, and is written value by value.
    study.ask(total=9)
    commits = []
    event.listen(study._storage._backend.engine, "commit", lambda _: commits.append(1))
    asked = study.ask(total=9)
    assert len(commits) == 1
    assert set(read_trials(study.folder)[asked.number].params) == set(asked.values)
    study.close()


def test_epochs_wait_for_each_other_and_for_a_second_at_most(tmp_path, monkeypatch):
    study = open_study(tmp_path, pruner="none")
    asked = study.ask(total=9)
    for epoch in (1, 2):
        study.report(asked.number, make_report(asked.spec, epoch))

    def written():
        return sorted(read_trials(study.folder)[asked.number].intermediate_values)

    assert written() == []
    monkeypatch.setattr("hpo.study._SYNC_SECONDS", 0.0)
    study.sync()
    assert written() == [1, 2]
    monkeypatch.undo()
    study.report(asked.number, make_report(asked.spec, 3))
    assert written() == [1, 2]
    # The end of a run is written at once.
    study.tell(asked.number, make_result(asked.spec, study.folder, Outcome.PRUNED, epochs=3))
    assert written() == [1, 2, 3]
    study.close()


def test_an_error_while_asking_leaves_nothing_and_the_same_run_is_asked_for_again(tmp_path, monkeypatch):
    study, same = open_study(tmp_path / "a", pruner="none"), open_study(tmp_path / "b", pruner="none")
    for each in (study, same):
        each.ask(total=9)
    broken = type(study.space)
    with monkeypatch.context() as patch:
        patch.setattr(broken, "spec", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.ask(total=9)
    assert len(study.trials()) == len(read_trials(study.folder)) == 1
    assert study.live == (0,)
    assert study.ask(total=9).values == same.ask(total=9).values
    for each in (study, same):
        each.close()


def test_a_database_of_several_studies_is_refused(tmp_path):
    url = storage_url(tmp_path)
    for name in ("a", "b"):
        optuna.create_study(storage=url, study_name=name)
    with pytest.raises(ValueError, match="holds 2 studies, but must hold one"):
        OneWriterStorage(url)


def test_a_study_made_by_optuna_alone_is_gone_on_with(tmp_path):
    """Studies of versions that wrote the database run value by value open as before."""
    study = open_study(tmp_path, pruner="none")
    study.close()
    plain = optuna.load_study(study_name=study.name, storage=storage_url(study.folder))
    optuna_trial = plain.ask()
    study.space.spec(optuna_trial)
    optuna_trial.report(0.5, 1)
    trials = search(tmp_path, total=2, objective=FastObjective(log=tmp_path / "log"), pruner="none")
    assert trials[0].intermediate_values[1] == 0.5
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert sorted(trials[0].intermediate_values) == list(range(1, EPOCHS + 1))
    assert trials[0].user_attrs["outcome"] == str(Outcome.FINISHED)
