"""When a search ends, what it costs, and what it starts with."""

import time
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hpo_search import EPOCHS, FastObjective, make_report, make_result, open_study, search, suggest_few
from optuna.trial import TrialState
from sqlalchemy import event

from hpo.checkpoints import CheckpointKeeper
from hpo.confirmation import RUN, SEED, confirmed, open_confirmation
from hpo.driver import Driver, Limits
from hpo.identity import StudyError
from hpo.reproduction import find_run
from hpo.study import made_with, read_trials, run_folder
from hpo.warm_start import enqueue_best
from training.results import Outcome
from training.spec import from_plain


@dataclass(frozen=True, kw_only=True)
class NullObjective:
    """Takes no time: what remains is what the search itself costs."""

    epochs: int

    def __call__(self, spec, folder, on_epoch):
        for epoch in range(1, self.epochs + 1):
            if not on_epoch(make_report(spec, epoch)):
                return make_result(spec, folder, Outcome.PRUNED, epochs=epoch)
        return make_result(spec, folder, Outcome.FINISHED, epochs=self.epochs)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_a_search_costs_does_not_grow_with_its_length(tmp_path):
    """200 runs of 20 reports: statements per report are few, and as few at the end as at the start."""
    statements = Counter()
    with_study = open_study(tmp_path, epochs=20, pruner="none")
    engine = with_study._study._storage._backend.engine
    event.listen(engine, "before_cursor_execute", lambda *_: statements.update(["all"]))
    per_run, cpu = [], time.process_time()
    num_runs = 200
    for total in range(1, num_runs + 1):
        before = statements["all"]
        Driver(with_study, Limits(runs=total)).run_here(NullObjective(epochs=20))
        per_run.append(statements["all"] - before)
    cpu = time.process_time() - cpu
    trials = with_study.trials()
    with_study.close()
    reports = sum(len(trial.intermediate_values) for trial in trials)
    print(f"{len(trials)} runs, {reports} reports: {1000 * cpu / reports:.1f} ms of CPU per report")
    assert (len(trials), reports) == (num_runs, 20 * num_runs)
    first, last = sum(per_run[10:20]), sum(per_run[-10:])
    assert last <= 1.2 * first
    assert last / 10 / 20 < 40


def test_a_time_budget_leaves_what_runs_for_the_next_driver(tmp_path):
    slow = FastObjective(log=tmp_path / "log", seconds=0.1)
    limits = Limits(runs=100, seconds=1.5)
    trials = search(tmp_path, total=100, objective=slow, limits=limits, pruner="none")
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.RUNNING] <= 1
    assert 1 <= states[TrialState.COMPLETE] < 15
    more = search(tmp_path, total=len(trials) + 1, pruner="none")
    assert {trial.state for trial in more} == {TrialState.COMPLETE}
    assert [trial.params for trial in more[: len(trials)]] == [trial.params for trial in trials]


def test_gpu_hours_count_what_was_trained_now(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Minutes(FastObjective):
        def report(self, spec, epoch):
            return replace(make_report(spec, epoch), seconds=60.0)

    minutes = Minutes(log=tmp_path / "log")
    # Two GPUs for ten minutes: five epochs of one minute, one run and one epoch of the next.
    limits = Limits(runs=100, gpu_seconds=600.0, gpus_per_run=2.0)
    search(tmp_path, total=100, objective=minutes, limits=limits, pruner="none")
    assert len((tmp_path / "log").read_text().splitlines()) == 5


def test_a_search_that_keeps_failing_ends_with_the_common_reason(tmp_path):
    study = open_study(tmp_path, pruner="none")
    driver = Driver(study, Limits(runs=50))
    driver.run_here(FastObjective(log=tmp_path / "log", outcome=Outcome.FAILED))
    assert driver.stopping == "6 of the last 6 runs failed, mostly with: it broke"
    assert len(study.trials()) == 6
    study.close()


def test_infeasible_points_take_no_runs_place(tmp_path):
    def check(spec):
        return "too wide" if spec.loader.batch_size > 4 else None

    trials = search(tmp_path, total=8, check=check, pruner="none", sampler="random")
    infeasible = [trial for trial in trials if trial.user_attrs["outcome"] == "infeasible"]
    assert infeasible
    assert len(trials) - len(infeasible) == 8
    assert all(trial.user_attrs["reason"] == "too wide" for trial in infeasible)
    assert not any(trial.intermediate_values for trial in infeasible)
    with pytest.raises(StudyError, match=f"run {infeasible[0].number} cannot be made: too wide"):
        find_run(tmp_path / "study", infeasible[0].number, sources=None, cache=tmp_path)


def test_a_space_of_which_nothing_can_run_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("hpo.driver._MANY_INFEASIBLE", 20)
    with pytest.raises(StudyError, match="20 points in a row cannot run"):
        search(tmp_path, total=1, check=lambda _: "no", suggest=suggest_few, sampler="random")


def test_only_the_best_runs_keep_their_checkpoints(tmp_path):
    class Writing(FastObjective):
        def __call__(self, spec, folder, on_epoch):
            for name in ("encoder-0001", "state-0001"):
                (folder / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
            return super().__call__(spec, folder, on_epoch)

    study = open_study(tmp_path)
    keeper = CheckpointKeeper(study, keep=3)
    most = 0

    class Counting:
        def started(self, _asked):
            nonlocal most
            most = max(most, len(list(study.folder.glob("runs/*/checkpoints"))))

        def epoch(self, _number, _report):
            pass

        def ended(self, _number, _result):
            pass

    driver = Driver(study, Limits(runs=20), observers=[keeper, Counting()])
    driver.run_here(Writing(log=tmp_path / "log"))
    keeper.tidy()
    finished = [trial for trial in study.trials() if trial.state is TrialState.COMPLETE]
    best = sorted(finished, key=lambda trial: -trial.values[0])[:3]
    kept = {path.parent.parent.name for path in study.folder.glob("runs/*/checkpoints/encoder-*")}
    assert kept == {f"{trial.number:04d}" for trial in best}
    assert not list(study.folder.glob("runs/*/checkpoints/state-*"))
    assert most <= 4
    study.close()


def test_the_best_of_another_study_run_first_where_they_lie_in_the_space(tmp_path):
    def suggest_narrow(ask):
        ask.number("optimizer.core_lr", 1e-3, 1e-2, log=True)
        ask.whole("loader.batch_size", 1, 8)

    other = search(tmp_path / "other", total=12, pruner="none", sampler="random")
    study = open_study(tmp_path / "new", suggest=suggest_narrow)
    start = enqueue_best(study, tmp_path / "other" / "study", count=12)
    ranked = sorted(other, key=lambda trial: -trial.values[0])
    inside = [trial for trial in ranked if 1e-3 <= trial.params["optimizer.core_lr"] <= 1e-2]
    assert start.taken == tuple(trial.number for trial in inside)
    assert len(start.refused) == 12 - len(inside) > 0
    assert "the space goes from 0.001 to 0.01" in start.refused[0]
    Driver(study, Limits(runs=4)).run_here(FastObjective(log=tmp_path / "log"))
    names = ("optimizer.core_lr", "loader.batch_size")
    wanted = [tuple(trial.params[name] for name in names) for trial in inside]
    # The study's own published values come first; they may be among the others.
    published = tuple(study.trials()[0].params[name] for name in names)
    expected = [published, *[values for values in wanted if values != published]][:4]
    assert [tuple(trial.params[name] for name in names) for trial in study.trials()[:4]] == expected
    study.close()


def test_an_unknown_study_is_named_with_the_known_ones(tmp_path):
    open_study(tmp_path).close()
    with pytest.raises(StudyError, match="must be one of study; did you mean study"):
        read_trials(tmp_path / "studdy")


def test_every_run_can_be_made_from_what_is_stored_of_it(tmp_path):
    specs = {}

    class Watching(FastObjective):
        def __call__(self, spec, folder, on_epoch):
            specs[int(folder.name)] = spec
            return super().__call__(spec, folder, on_epoch)

    trials = search(tmp_path, total=6, objective=Watching(log=tmp_path / "log"))
    assert {trial.number: from_plain(made_with(trial)["spec"]) for trial in trials} == specs


def test_confirmation_makes_the_best_runs_with_further_seeds_and_goes_on(tmp_path):
    made = []

    class Seeded(FastObjective):
        def __call__(self, spec, folder, on_epoch):
            made.append(spec)
            result = super().__call__(spec, folder, on_epoch)
            return replace(result, score=spec.optimizer.core_lr + spec.seed)

    study = open_study(tmp_path, pruner="none")
    Driver(study, Limits(runs=8)).run_here(FastObjective(log=tmp_path / "log"))
    best = [trial.number for trial in sorted(study.trials(), key=lambda trial: -trial.values[0])]
    base = study.space.base.seed
    for top, seeds in ((2, 2), (3, 2)):
        confirmation, total = open_confirmation(study, top=top, seeds=seeds)
        assert total == top * seeds
        Driver(confirmation, Limits(runs=total)).run_here(Seeded(log=tmp_path / f"log-{top}"))
        trials = confirmation.trials()
        pairs = [(trial.params[RUN], trial.params[SEED]) for trial in trials]
        assert sorted(pairs) == sorted((run, base + 1 + i) for run in best[:top] for i in range(seeds))
        confirmation.close()
    # Those that were confirmed before are not made again.
    assert len(made) == 6
    for row in confirmed(study.trials(), trials):
        rate = study.trials()[row.run].params["optimizer.core_lr"]
        assert row.mean == pytest.approx(base + 1.5 + rate)
        assert row.spread == pytest.approx(0.5**0.5)
        assert row.found == study.trials()[row.run].values[0]
    study.close()


def test_epochs_told_again_after_a_restart_are_not_reported_again(tmp_path):
    study = open_study(tmp_path, pruner="none")
    asked = study.ask(total=1)
    spec = asked.spec
    for epoch in (1, 2):
        assert study.report(asked.number, make_report(spec, epoch))
    study.close()
    again = open_study(tmp_path, pruner="none")
    resumed = again.ask(total=1)
    assert resumed.resumed
    assert resumed.spec == spec
    for epoch in range(1, EPOCHS + 1):
        assert again.report(resumed.number, make_report(spec, epoch, score=0.5))
    curve = again.trials()[0].intermediate_values
    assert curve == {1: make_report(spec, 1).score, 2: make_report(spec, 2).score, 3: 0.5, 4: 0.5}
    assert run_folder(again.folder, 0).name == "0000"
    again.close()
