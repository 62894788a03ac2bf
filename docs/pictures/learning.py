"""Draw how near to the best possible score the demo recipes come: ``docs/pictures/learning.png``.

Reads what ``python benchmarks/learning.py`` left in its folder: scores against the known ceiling, and what
the best recipe predicts for five neurons of median score over an oracle trial, beside what was recorded
and the true rate.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from data.folds import select_trials
from data.normalization import BASELINE, Normalization
from data.recording import Tier
from data.sources import open_recordings
from training.encoders import load_encoder
from training.known_ceiling import open_truths
from training.material import Material
from training.metrics import BURN_IN_FRAMES, ScoreAccumulator, count_repeats
from training.pictures import PREDICTED, RECORDED, THIRD, median_neurons
from training.predict import predictions


def main() -> None:
    """Read the outcomes and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs/learning"))
    parser.add_argument("--to", type=Path, default=Path(__file__).with_suffix(".png"))
    args = parser.parse_args()
    outcomes = [json.loads(path.read_text()) for path in sorted(args.runs.glob("*/learning.json"))]
    if not outcomes:
        raise SystemExit(f"{args.runs} holds no outcomes: run python benchmarks/learning.py first")
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2.1))
    draw_scores(above.subplots(), outcomes)
    best = max(outcomes, key=lambda outcome: outcome["score"])
    draw_traces(below, best, args.runs)
    figure.savefig(args.to, dpi=120)


def draw_scores(axes: Any, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Draw a bar for each recipe, a dot for each of its seeds, and the ceiling."""
    scores = defaultdict(list)
    for outcome in outcomes:
        scores[outcome["name"]].append(outcome["score"])
    names = sorted(scores, key=lambda name: np.mean(scores[name]))
    ceiling = outcomes[0]["ceiling"]
    axes.barh(names, [np.mean(scores[name]) for name in names], color="#0072b2", alpha=0.75)
    for place, name in enumerate(names):
        axes.plot(scores[name], [place] * len(scores[name]), ".", color="black", markersize=4)
        share = np.mean(scores[name]) / ceiling
        axes.text(0.005, place, f"{share:.0%} of the ceiling", va="center", color="white", fontsize=8)
    axes.axvline(ceiling, color="#d55e00", linewidth=1.6)
    axes.text(ceiling, 0, "true rates ", color="#d55e00", ha="right", va="center", fontsize=9)
    axes.set(xlabel="single-trial correlation, oracle tier", xlim=(0, ceiling * 1.04))
    axes.spines[["top", "right"]].set_visible(False)


def draw_traces(figure: Any, outcome: Mapping[str, Any], runs: Path) -> None:
    """Draw recorded, predicted and true activity of the five neurons of median score."""
    folders = [path for path in (runs / "recordings").iterdir() if path.name.startswith("dynamic")]
    recordings = open_recordings(sorted(folders), cache=runs / "cache")
    recording = recordings[0]
    trained = load_encoder(Path(outcome["checkpoint"]))
    material = Material.prepare(recordings, trained.spec, device=torch.device("cpu"))
    trials = select_trials([recording], [Tier.ORACLE])
    accumulator = ScoreAccumulator(
        recording.session, len(recording.neurons.ids), repeats=count_repeats(trials[recording.session])
    )
    shown = None
    for _, trial, predicted, responses in predictions(
        trained.encoder,
        [recording],
        trials,
        normalizations=material.normalizations,
        inference=trained.spec.inference,
        compute=trained.spec.compute,
    ):
        assert responses is not None
        accumulator.update(
            predicted, responses, trial=trial.index, video_id=trial.video_id, stimulus=trial.stimulus
        )
        shown = shown or (trial, predicted, responses)
    assert shown is not None
    trial, predicted, responses = shown
    scores = accumulator.result().neurons.single_trial
    precision = Normalization.fit(recording, BASELINE).precision.numpy()[: trial.num_frames].T
    true = open_truths(runs / "recordings", [recording])[recording.session].expected_responses(
        trial.index, gain="behavior"
    )
    true = true * precision
    seconds = np.arange(BURN_IN_FRAMES, trial.num_frames) / recording.frame_rate_hz
    chosen = median_neurons(scores)
    rows = figure.subplots(len(chosen), 1, sharex=True)
    for axes, neuron in zip(rows, chosen, strict=True):
        measured = responses[neuron, BURN_IN_FRAMES:]
        axes.fill_between(seconds, measured, color=RECORDED, alpha=0.3, linewidth=0, label="recorded")
        axes.plot(seconds, true[neuron, BURN_IN_FRAMES:], color=THIRD, linewidth=1, label="true rate")
        axes.plot(
            seconds, predicted[neuron, -len(seconds) :], color=PREDICTED, linewidth=1.5, label="predicted"
        )
        axes.set_ylabel(f"r = {scores[neuron]:.2f}", rotation=0, ha="right", va="center")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks([])
    rows[0].legend(frameon=False, ncols=3, loc="upper right", fontsize=8)
    rows[0].set_title(
        f"{outcome['name']}: five neurons of median score, an oracle trial that was not trained on",
        fontsize=10,
    )
    rows[-1].set_xlabel("seconds")


if __name__ == "__main__":
    main()
