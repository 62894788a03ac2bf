import csv
import hashlib
import json
import math
import shlex
import statistics
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import optuna
import pytest
from hpo_search import make_report, open_study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from data.svg import styled
from hpo.afterwards import study_folder as find_study
from hpo.arguments import parse_afterwards
from hpo.ceiling import CEILING_FILE
from hpo.confirmation import CONFIRMATION_HEADINGS, RUN, SEED, confirmation_folder
from hpo.figures.hyperparameters import Scale, correlation_matrix, draw_parallel, draw_slices
from hpo.figures.progress import draw_curves, draw_history
from hpo.identity import StudyError
from hpo.pruning import PruningConfig
from hpo.report import _best, write_report
from hpo.report_data import cheapest_best, read_study, rung_ranks
from hpo.study import storage_url
from training.names import with_values
from training.recipes import recipe
from training.spec import to_plain

EPOCHS = 9
SECTIONS = (
    "Best run",
    "Scores",
    "Learning curves",
    "Do early scores tell the end?",
    "Importance of hyperparameters",
    "Runs as lines",
    "Score over each hyperparameter",
    "Correlations",
    "Score and cost",
    "All runs",
)


def a_run(number, *, curve=(), outcome="finished", seconds=None, reason=None, rng=None):
    rng = rng or np.random.default_rng(number)
    patch = int(rng.integers(3, 17))
    ranges = {
        "optimizer.core_lr": FloatDistribution(1e-4, 1e-2),
        "model.ff_dropout": FloatDistribution(0.0, 0.5),
        "model.spatial_patch_size": IntDistribution(3, 16),
        "model.spatial_patch_stride": IntDistribution(1, patch),
        "model.ff_activation": CategoricalDistribution(["tanh", "gelu", "elu"]),
    }
    values = {
        "optimizer.core_lr": float(rng.uniform(1e-4, 1e-2)),
        "model.ff_dropout": float(rng.uniform(0, 0.5)),
        "model.spatial_patch_size": patch,
        "model.spatial_patch_stride": int(rng.integers(1, patch + 1)),
        "model.ff_activation": ["tanh", "gelu", "elu"][int(rng.integers(3))],
    }
    states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL, "running": TrialState.RUNNING}
    attributes = {"outcome": outcome, "seconds": seconds, "reason": reason}
    return create_trial(
        params=values,
        distributions=ranges,
        state=states.get(outcome, TrialState.PRUNED),
        value=curve[-1] if outcome == "finished" else None,
        intermediate_values=dict(enumerate(curve, start=1)),
        user_attrs={}
        if outcome == "running"
        else {name: value for name, value in attributes.items() if value is not None},
        system_attrs={"fixed_params": values} if number == 0 else {},
    )


def curve_of(final, epochs=EPOCHS, *, bend=0.5):
    return [final * (epoch / EPOCHS) ** bend for epoch in range(1, epochs + 1)]


FINALS = (0.20, 0.12, 0.31, 0.25, 0.08, 0.28, 0.17)


def all_kinds():
    """Return runs of every kind; run 2 is the best, run 0 the published one."""
    runs = [
        a_run(number, curve=curve_of(final, bend=0.3 + 0.1 * number), seconds=10.0 + (5 * number) % 7)
        for number, final in enumerate(FINALS)
    ]
    runs.append(a_run(7, curve=curve_of(0.1, 3), outcome="pruned", seconds=3.0))
    runs.append(a_run(8, curve=curve_of(0.05, 1), outcome="pruned", seconds=1.0))
    runs.append(
        a_run(9, outcome="failed", seconds=0.5, reason="ValueError: a <script>alert(1)</script> & more")
    )
    runs.append(a_run(10, outcome="infeasible", seconds=0.0, reason="one clip needs 9.0 GB"))
    diverged = [0.02, math.nan]
    runs.append(a_run(11, curve=diverged, outcome="pruned", seconds=2.0, reason="the score is not a number"))
    runs.append(a_run(12, curve=curve_of(0.2, 2), outcome="running"))
    return runs


def store(folder, runs, *, identity=True):
    folder.mkdir(parents=True)
    study = optuna.create_study(storage=storage_url(folder), study_name="vivit", direction="maximize")
    study.add_trials(runs)
    study._storage.remove_session()
    study._storage._backend.engine.dispose()
    if identity:
        base = replace(recipe("vivit"), epochs=EPOCHS, seed=3)
        content = {
            "space": {"name": "vivit", "scale": "full"},
            "base": to_plain(base),
            "pinned": {"model.num_heads": "4", "data.unknown": "1"},
            "pruning": asdict(PruningConfig(min_epochs=1, max_epochs=EPOCHS)),
        }
        (folder / "study.json").write_text(json.dumps(content))
    return folder


class Page(HTMLParser):
    """Collects what a page refers to, its tables, its headings and its text."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tables, self.headings, self.tags = [], [], [], []
        self.text, self._inside = "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
        self.references += [value for name, value in attributes if name in names]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += data
        inside = self._inside[-1] if self._inside else ""
        if inside == "h2":
            self.headings.append(data)
        if inside in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def table(self, *heading):
        return next(table[1:] for table in self.tables if table[0][: len(heading)] == list(heading))


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    return store(tmp_path_factory.mktemp("studies") / "vivit-full", all_kinds())


@pytest.fixture(scope="module")
def page(study_folder):
    return write_report(study_folder).read_text()


def test_the_page_needs_no_network(page):
    found = Page(page)
    # The scale of colors is a picture inside the page.
    assert {reference[:16] for reference in found.references if reference[0] != "#"} == {"data:image/png;b"}
    assert "http" not in page
    assert "@import" not in page
    assert page.count("url(") == page.count("url(#")
    assert not {"script", "link", "iframe", "img", "object"} & set(found.tags)


def test_every_part_is_there_with_its_picture(page):
    found = Page(page)
    assert tuple(found.headings) == SECTIONS
    assert found.tags.count("svg") == 8
    assert "Too little to draw" not in page


def test_identifiers_in_pictures_are_those_of_one_picture(page):
    for svg in page.split("<svg")[1:]:
        svg = svg[: svg.index("</svg>")]
        for reference in {part.split(")")[0] for part in svg.split("url(#")[1:]}:
            assert f'id="{reference}"' in svg
            assert page.count(f'id="{reference}"') == 1


def test_pictures_take_their_ink_from_the_page(page):
    assert "prefers-color-scheme: dark" in page
    assert "currentColor" in page
    assert "#010203" not in page
    assert "#040506" not in page
    # Black ink of matplotlib's own would vanish on a dark page.
    assert "#000000" not in page


def test_the_best_run_stands_first_beside_the_published_one(page):
    text = Page(page).text
    assert "Run 2: 0.3100; the published values (run 0) have 0.2000." in text
    assert "best: run 2" in text


def test_the_table_of_runs_has_every_run_with_its_numbers(page):
    rows = Page(page).table("run", "outcome", "score")
    by_number = {int(row[0]): row for row in rows}
    assert sorted(by_number) == list(range(13))
    assert [int(row[0]) for row in rows[:7]] == [2, 5, 3, 0, 6, 1, 4]
    for number, final in enumerate(FINALS):
        assert by_number[number][1:5] == ["finished", f"{final:.4f}", f"{final:.4f}", "9"]
    assert by_number[7][1:6] == ["pruned", "", f"{0.1 * math.sqrt(3 / 9):.4f}", "3", "3.0"]
    assert by_number[9][1:5] == ["failed", "", "", "0"]
    assert by_number[10][1:7] == ["infeasible", "", "", "0", "0.0", "one clip needs 9.0 GB"]
    assert by_number[11][1:5] == ["pruned", "", "0.0200", "2"]
    assert by_number[12][1:5] == ["running", "", f"{0.2 * math.sqrt(2 / 9):.4f}", "2"]


def test_counts_and_costs_are_added_up(page):
    text = Page(page).text
    assert "Runs: 1 failed, 7 finished, 1 infeasible, 3 pruned, 1 running." in text
    # 7 full curves and parts of 3, 1, 2 and 2 epochs; 12 runs could have had 9.
    assert "71 epochs, where runs without early stopping take 108" in text
    assert "The search has not ended" in text


def test_what_a_run_says_cannot_become_part_of_the_page(page):
    assert "<script" not in page
    assert "a &lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page


def test_csv_files_have_what_the_storage_has(study_folder, page):
    runs = list(csv.DictReader((study_folder / "runs.csv").read_text().splitlines()))
    curves = list(csv.DictReader((study_folder / "curves.csv").read_text().splitlines()))
    for trial, row in zip(all_kinds(), runs, strict=True):
        for name, value in trial.params.items():
            assert row[name] == str(value)
    expected = [
        (number, epoch, score)
        for number, trial in enumerate(all_kinds())
        for epoch, score in trial.intermediate_values.items()
    ]
    assert len(curves) == len(expected)
    for (number, epoch, score), row in zip(expected, curves, strict=True):
        assert (int(row["run"]), int(row["epoch"])) == (number, epoch)
        assert float(row["score"]) == pytest.approx(score, nan_ok=True)
    shares = list(csv.DictReader((study_folder / "importances.csv").read_text().splitlines()))
    assert sum(float(row["forest"]) for row in shares) == pytest.approx(1.0)


def test_the_best_runs_command_makes_the_same_run(study_folder, page):
    study = read_study(study_folder)
    line = next(part for part in page.split("<pre>") if part.startswith("python training/train.py"))
    words = shlex.split(line[: line.index("</pre>")].replace("&#x27;", "'").replace("&quot;", '"'))
    settings = dict(word.split("=", 1) for before, word in pairwise(words) if before == "--set")
    seed = int(words[words.index("--seed") + 1])
    assert words[2] == "vivit"
    made = with_values(recipe("vivit", scale=words[words.index("--scale") + 1]), settings)
    assert replace(made, seed=seed) == study.spec(study.best)
    assert made.model.num_heads == 4
    assert made.optimizer.core_lr == all_kinds()[2].params["optimizer.core_lr"]


def again(run, seed, score=None):
    whole = IntDistribution(0, 2**31 - 1)
    return create_trial(
        params={RUN: run, SEED: seed},
        distributions={RUN: whole, SEED: whole},
        value=score,
        state=TrialState.FAIL if score is None else TrialState.COMPLETE,
    )


def test_the_best_run_stands_beside_the_noise_ceiling_and_what_further_seeds_say(tmp_path):
    folder = store(tmp_path / "studies" / "it", all_kinds())
    assert "oise ceiling" not in _best(read_study(folder))
    (folder / CEILING_FILE).write_text(json.dumps({"single_trial_max": 0.71234}))
    seeds = [again(2, 4, 0.25), again(5, 4, 0.27), again(2, 5, 0.21), again(5, 5, 0.28), again(2, 6)]
    store(confirmation_folder(folder), seeds, identity=False)
    page = Page(_best(read_study(folder)))
    assert "Noise ceiling: 0.7123" in page.text
    sd = statistics.stdev
    assert page.table(*CONFIRMATION_HEADINGS) == [
        ["5", "0.2750", f"{sd((0.27, 0.28)):.4f}", "0.2700", "0.2800", "2", "0.2800"],
        ["2", "0.2300", f"{sd((0.25, 0.21)):.4f}", "0.2100", "0.2500", "2 (1 failed)", "0.3100"],
    ]


@pytest.mark.parametrize("place", ["studies/it", "elsewhere/it"])
def test_the_line_that_reproduces_the_best_run_finds_the_study(tmp_path, monkeypatch, place):
    folder = store(tmp_path / "with space" / place, all_kinds())
    parts = _best(read_study(folder)).split("<pre>")
    line = next(part for part in parts if part.startswith("python hpo/search.py"))
    words = shlex.split(line[: line.index("</pre>")].replace("&#x27;", "'"))
    monkeypatch.chdir(tmp_path)
    parsed = parse_afterwards(words[2:])
    assert (find_study(parsed).resolve(), parsed.run) == (folder.resolve(), 2)


def test_rank_correlations_are_spearmans(study_folder, page):
    early = {epoch: [trial.intermediate_values[epoch] for trial in all_kinds()[:7]] for epoch in (1, 3)}

    def places(values):
        return [sorted(values).index(value) for value in values]

    for rank in rung_ranks(read_study(study_folder)):
        differences = np.subtract(places(early[rank.epoch]), places(FINALS))
        assert rank.correlation == pytest.approx(1 - 6 * np.sum(differences**2) / (7 * (49 - 1)))
        assert rank.runs == 7
        assert [str(rank.epoch), f"{rank.correlation:.2f}", "7"] in Page(page).table("after epoch")


def test_the_front_is_what_no_cheaper_run_beats(study_folder):
    runs = read_study(study_folder).finished
    expected = {
        run.number
        for run in runs
        if not any(
            other.seconds <= run.seconds and other.score >= run.score and other is not run for other in runs
        )
    }
    front = cheapest_best(runs)
    assert {run.number for run in front} == expected
    assert [run.seconds for run in front] == sorted(run.seconds for run in front)


def test_correlations_are_those_of_a_loop(study_folder):
    study = read_study(study_folder)
    names, matrix = correlation_matrix(study)
    ended = [trial for number, trial in enumerate(all_kinds()) if number not in (9, 10, 12)]
    scores = [*FINALS, *(trial.intermediate_values[max(trial.intermediate_values)] for trial in ended[7:])]
    scores[-1] = 0.02  # Its last epoch has no number.
    assert names[0] == "score"
    assert "model.ff_activation" not in names
    for column, name in enumerate(names[1:], start=1):
        values = [trial.params[name] for trial in ended]
        mean_value, mean_score = sum(values) / len(values), sum(scores) / len(scores)
        product = sum((v - mean_value) * (s - mean_score) for v, s in zip(values, scores, strict=True))
        squares = [sum((v - mean_value) ** 2 for v in values), sum((s - mean_score) ** 2 for s in scores)]
        assert matrix[0, column] == pytest.approx(product / math.sqrt(squares[0] * squares[1])), name


def test_curves_are_drawn_as_they_were_reported(study_folder):
    study = read_study(study_folder)
    with styled():
        axes = draw_curves(study).axes[0]
    drawn = [tuple(map(tuple, line.get_xydata())) for line in axes.lines]
    for number in (0, 2, 7, 8, 12):
        assert tuple((e, s) for e, s in study.runs[number].curve.items()) in drawn
    assert ((1.0, 0.02),) in drawn
    stopped = next(dots for dots in axes.collections if dots.get_label() == "stopped").get_offsets()
    ends = [
        (3, study.runs[7].curve[3]),
        (1, study.runs[8].curve[1]),
        (1, 0.02),
    ]
    np.testing.assert_allclose(sorted(map(tuple, stopped)), sorted(ends))


def test_the_best_so_far_never_falls(study_folder):
    with styled():
        axes = draw_history(read_study(study_folder)).axes[0]
    best = next(line for line in axes.lines if line.get_label() == "best so far").get_ydata()
    assert list(best) == [0.20, 0.20, 0.31, 0.31, 0.31, 0.31, 0.31, 0.31]


def test_every_hyperparameter_has_a_panel_and_an_axis(study_folder):
    study = read_study(study_folder)
    names = sorted(all_kinds()[0].params)
    with styled():
        slices, parallel = draw_slices(study, names), draw_parallel(study, names)
    assert [axes.get_title(loc="left") for axes in slices.axes if axes.get_visible()] == names
    assert [label.get_text() for label in parallel.axes[0].get_xticklabels()] == names
    # One line per run with a score, and one per axis.
    assert len(parallel.axes[0].lines) == len(study.scored) + len(names)


@pytest.mark.parametrize(
    ("scale", "value", "place"),
    [
        (Scale(name="a", low=0.0, high=4.0), 1.0, 0.25),
        (Scale(name="a", low=0.01, high=1.0, log=True), 0.1, 0.5),
        (Scale(name="a", choices=("x", "y")), "y", 0.75),
        (Scale(name="a", low=3.0, high=3.0), 3.0, 0.5),
    ],
)
def test_a_value_has_its_place_on_its_axis(scale, value, place):
    assert scale.place(value) == pytest.approx(place)


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_study_of_a_few_runs_has_a_report(tmp_path, number):
    folder = store(tmp_path / "few", all_kinds()[:number])
    found = Page(write_report(folder).read_text())
    assert tuple(found.headings) == SECTIONS
    assert len(found.table("run", "outcome")) == number
    if number == 0:
        assert "No run has finished yet." in found.text
        assert "Runs: none yet." in found.text


@pytest.mark.parametrize("kept", [(9,), (10,), (11,), (12,), (7, 8), (9, 10, 11)])
def test_a_study_without_any_finished_run_has_a_report(tmp_path, kept):
    folder = store(tmp_path / "none", [all_kinds()[number] for number in kept], identity=False)
    found = Page(write_report(folder).read_text())
    assert tuple(found.headings) == SECTIONS
    assert "No run has finished yet." in found.text


def test_runs_whose_scores_are_equal_have_a_report(tmp_path):
    runs = [a_run(number, curve=[0.1] * EPOCHS) for number in range(8)]
    found = Page(write_report(store(tmp_path / "equal", runs)).read_text())
    assert "a ranking needs 5, and scores that differ" in found.text
    assert found.table("after epoch")[0] == ["1", "-", "8"]


def test_a_report_of_a_study_that_is_being_driven_changes_nothing(tmp_path):
    study = open_study(tmp_path)
    first, second = study.ask(total=4), study.ask(total=4)
    study.report(first.number, make_report(first.spec, 1, 0.1))
    before = hashlib.sha256((study.folder / "study.db").read_bytes()).hexdigest()
    found = Page(write_report(study.folder).read_text())
    assert hashlib.sha256((study.folder / "study.db").read_bytes()).hexdigest() == before
    assert [row[1] for row in found.table("run", "outcome")] == ["running", "running"]
    # The driver goes on as if nothing had been.
    assert study.report(second.number, make_report(second.spec, 1, 0.2)) in (True, False)
    study.close()


def test_a_report_is_written_where_it_is_wanted(tmp_path):
    study_folder = store(tmp_path / "study", all_kinds()[:1])
    before = sorted(path.name for path in study_folder.iterdir())
    page = write_report(study_folder, tmp_path / "deep" / "page.html")
    assert page == tmp_path / "deep" / "page.html"
    files = sorted(path.name for path in page.parent.iterdir())
    assert files == ["curves.csv", "importances.csv", "page.html", "runs.csv"]
    assert sorted(path.name for path in study_folder.iterdir()) == before


def test_a_storage_without_a_study_yet_is_refused(tmp_path):
    storage = optuna.storages.RDBStorage(storage_url(tmp_path))
    storage.remove_session()
    storage.engine.dispose()
    with pytest.raises(StudyError, match="holds no study yet"):
        write_report(tmp_path)


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"has no study.db, but must be the folder of a study"):
        write_report(tmp_path)
