"""What is said about an ensemble, and that it says what the evidence says."""

import csv
import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from ensemble_pools import make_pool
from rich.console import Console

from ensembles.blending import BLENDS
from ensembles.ceiling_share import measure_ceilings
from ensembles.diagnostics import analyze
from ensembles.evidence import METRICS
from ensembles.gate import choose
from ensembles.report import print_report, write_report

POOL = make_pool(neurons=(20, 30), num_members=6, videos=6, num_frames=100)
GROUPS = dict(zip(POOL.members, ["a", "a", "a", "b", "b", "c"], strict=True))
SMALL = {number: make_pool(num_members=number, videos=3, repeats=2) for number in (1, 2)}
COSTS = dict(zip(POOL.members, [3.0, 1.0, 1.0, 1.0, 2.0, 2.0], strict=True))


@pytest.fixture(scope="module")
def analysis(evidence):
    choice = choose(evidence, groups=GROUPS)
    return analyze(
        choice,
        choose_on=evidence,
        report_on=evidence,
        recordings=POOL.recordings,
        groups=GROUPS,
        costs=COSTS,
        cost_unit="seconds per trial",
    )


def test_scores_are_those_of_the_evidence(analysis, evidence):
    kept = [evidence.index(member) for member in analysis.choice.kept]
    mean = np.isin(range(6), kept) / len(kept)
    for metric in METRICS:
        score = evidence.score(mean, metric=metric)
        reported = analysis.system("mean")
        assert reported.overall[metric].value == pytest.approx(score.pooled, abs=1e-12)
        for session, value in score.by_session.items():
            assert reported.by_session[session][metric].value == pytest.approx(value, abs=1e-12)
        for stimulus, value in score.by_stimulus.items():
            assert reported.by_stimulus[stimulus][metric].value == pytest.approx(value, abs=1e-12)
        held_out = evidence.score(analysis.choice.held_out_weights, metric=metric)
        assert analysis.chosen.overall[metric].value == pytest.approx(held_out.pooled, abs=1e-12)
        in_sample = evidence.score(analysis.choice.by_session, metric=metric)
        assert analysis.in_sample[metric] == pytest.approx(in_sample.pooled, abs=1e-12)


def test_intervals_are_jackknives_over_clips(analysis, evidence):
    mean = np.array([member in analysis.choice.kept for member in evidence.members], dtype=float)
    without = [
        evidence.score(mean, clips=[other for other in range(6) if other != clip]).pooled for clip in range(6)
    ]
    error = math.sqrt(5 / 6 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert analysis.system("mean").overall["single_trial"].error == pytest.approx(error, rel=1e-9)


def test_contributions_are_what_is_lost_without_a_member(analysis, evidence):
    for place, member in enumerate(analysis.members):
        if member.weight == 0:
            assert member.contribution is None
            continue
        reduced = {session: weights.copy() for session, weights in analysis.choice.held_out_weights.items()}
        for weights in reduced.values():
            weights[:, place] = 0
        for metric in METRICS:
            lost = analysis.chosen.overall[metric].value - evidence.score(reduced, metric=metric).pooled
            assert member.contribution[metric].value == pytest.approx(lost, abs=1e-12)


def test_diversity_is_the_mean_correlation_of_predictions(analysis):
    by_neuron = []
    for recording in POOL.recordings:
        of = POOL.predicted[recording.session]
        # The store keeps half precision.
        joined = [
            np.concatenate([of[member][trial.index] for trial in recording.trials], axis=1)
            .astype(np.float16)
            .astype(np.float64)
            for member in POOL.members
        ]
        by_neuron += [np.corrcoef([values[n] for values in joined]) for n in range(len(joined[0]))]
    wanted = np.mean(by_neuron, axis=0)
    np.testing.assert_allclose(analysis.correlation, wanted, atol=1e-5)
    kept = [POOL.members.index(member) for member in analysis.choice.kept]
    pairs = [wanted[i, j] for i in kept for j in kept if i != j]
    assert analysis.mean_correlation == pytest.approx(np.mean(pairs), abs=1e-5)
    # As many uncorrelated traces of variance 1 as give the mean of these the same variance.
    variance = np.mean([wanted[i, j] for i in kept for j in kept])
    assert analysis.effective_number == pytest.approx(1 / variance, rel=1e-4)


def test_copies_of_a_member_count_as_one(gather_pool):
    def same(_, y, p):
        return y, dict.fromkeys(p, p["member-0"])

    evidence = gather_pool(make_pool(alter=same, videos=4))
    found = analyze(choose(evidence), choose_on=evidence, report_on=evidence)
    assert found.effective_number == pytest.approx(1, abs=1e-5)
    assert found.gain_over_best["single_trial"].value == pytest.approx(0, abs=1e-7)


def test_the_curve_ends_with_the_mean_of_all(analysis, evidence):
    curve = analysis.curve
    assert [point.num_members for point in curve] == list(range(1, len(analysis.choice.kept) + 1))
    singles = [evidence.score(np.eye(6)[evidence.index(member)]).pooled for member in analysis.choice.kept]
    assert curve[0].score == pytest.approx(np.mean(singles), abs=1e-6)
    assert curve[-1].score == pytest.approx(analysis.system("mean").overall["single_trial"].value, abs=1e-6)


def test_nothing_on_the_front_is_beaten_by_anything_cheaper(analysis, evidence):
    front = analysis.front
    points = [*front, *analysis.costs]
    assert all(a.cost < b.cost and a.score < b.score for a, b in pairwise(front))
    for point in points:
        assert point.cost == sum(COSTS[member] for member in point.members)
        weights = np.isin(evidence.members, point.members).astype(float)
        assert point.score == pytest.approx(evidence.score(weights).pooled, abs=1e-6)
        assert any(best.cost <= point.cost and best.score >= point.score for best in front)


def test_other_clips_that_report_have_no_part_in_the_choice(evidence, gather_pool):
    other = gather_pool(make_pool(seed=9, neurons=(20, 30), num_members=6, videos=4, num_frames=100))
    choice = choose(evidence)
    found = analyze(choice, choose_on=evidence, report_on=other)
    assert found.protocol == "other_clips"
    assert found.num_clips == 4
    score = other.score(choice.by_session)
    assert found.chosen.overall["single_trial"].value == pytest.approx(score.pooled, abs=1e-12)
    assert found.in_sample["single_trial"] == pytest.approx(evidence.score(choice.by_session).pooled)


def test_the_ceiling_is_what_the_signal_alone_would_score(evidence):
    ceilings = measure_ceilings(evidence, POOL.recordings)
    # Responses are a signal of variance 1 and noise of variance 1, repeated three times.
    single = np.concatenate([ceiling.single_trial_max for ceiling in ceilings])
    average = np.concatenate([ceiling.cc_max for ceiling in ceilings])
    assert single.mean() == pytest.approx(math.sqrt(1 / 2), abs=0.02)
    assert average.mean() == pytest.approx(math.sqrt(1 / (1 + 1 / 3)), abs=0.02)


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "path", "use", "image", "rect", "line", "circle"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, _, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_page_stands_alone_and_is_whole(analysis, tmp_path):
    page = write_report(analysis, tmp_path / "report", title="Six & more")
    text = page.read_text()
    parser = _Page()
    parser.feed(text)
    assert parser.open == []
    assert all(link.startswith(("#", "data:")) for link in parser.links)
    assert "Six &amp; more" in text
    for member in analysis.members:
        assert member.member in text
    assert "optimistic" in text
    pictures = text.split("<svg")[1:]
    assert len(pictures) == 7
    ids = []
    for picture in pictures:
        root = ElementTree.fromstring("<svg" + picture.split("</svg>")[0] + "</svg>")
        ids += [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_files_hold_the_numbers_of_the_analysis(analysis, tmp_path):
    write_report(analysis, tmp_path)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    chosen = next(
        row for row in rows if (row["system"], row["scope"], row["metric"]) == ("chosen", "all", "to_average")
    )
    assert float(chosen["score"]) == analysis.chosen.overall["to_average"].value
    assert float(chosen["low"]) == analysis.chosen.overall["to_average"].low
    with (tmp_path / "members.csv").open() as file:
        weights = [float(row["weight"]) for row in csv.DictReader(file)]
    assert sum(weights) == pytest.approx(1)
    with (tmp_path / "correlation.csv").open() as file:
        correlation = [[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]]
    np.testing.assert_array_equal(correlation, analysis.correlation)
    plain = json.loads((tmp_path / "analysis.json").read_text())
    # Without the two that are broken.
    assert [point["num_members"] for point in plain["curve"]] == [1, 2, 3, 4]
    assert plain["curve"][-1]["score"] == pytest.approx(
        plain["scores"]["mean"]["overall"]["single_trial"]["value"], abs=1e-6
    )
    assert plain["front"][-1]["cost"] == max(point["cost"] for point in plain["front"])
    assert plain["scores"]["mean"]["overall"]["single_trial"]["value"] == analysis.system("mean").overall[
        "single_trial"
    ].value  # fmt: skip


def test_the_terminal_says_forced_and_broken(evidence):
    choice = choose(evidence, blend="greedy", groups=GROUPS)
    found = analyze(choice, choose_on=evidence, report_on=evidence)
    console = Console(width=200, record=True, force_terminal=False)
    print_report(found, console)
    text = console.export_text()
    assert "forced" in text
    for broken in choice.broken:
        assert f"{broken.member} (broken)" in text


@pytest.mark.parametrize("num_members", [1, 2])
@pytest.mark.parametrize("blend", [None, *BLENDS])
def test_the_smallest_pools_are_analyzed_too(gather_pool, tmp_path, num_members, blend):
    evidence = gather_pool(SMALL[num_members])
    choice = choose(evidence, blend=blend)
    found = analyze(choice, choose_on=evidence, report_on=evidence, recordings=SMALL[num_members].recordings)
    assert choice.weights.sum() == pytest.approx(1)
    assert found.chosen.overall["single_trial"].value > 0
    if blend is None:
        assert write_report(found, tmp_path).is_file()


def test_members_that_say_nothing_are_reported_too(gather_pool, tmp_path):
    def flat(_, y, p):
        return y, {member: np.full_like(values, 0.5) for member, values in p.items()}

    evidence = gather_pool(make_pool(videos=3, num_members=3, alter=flat))
    choice = choose(evidence)
    found = analyze(choice, choose_on=evidence, report_on=evidence)
    assert choice.blend == "mean"
    assert found.chosen.overall["single_trial"].value == 0
    assert found.num_constant == 12
    assert "12 neurons never change and count as 0" in write_report(found, tmp_path).read_text()
