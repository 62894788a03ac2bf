"""Pictures of one run: its learning curves, and what it predicts for a few neurons."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from training.results import EpochReport

# Okabe and Ito (2008): told apart with every kind of color vision.
RECORDED, PREDICTED, THIRD = "#4d4d4d", "#d55e00", "#0072b2"


def draw_curves(reports: Sequence[EpochReport], path: Path) -> Path:
    """Draw training loss and hold-out score over epochs.

    Returns:
        The PNG file.
    """
    epochs = [report.epoch for report in reports]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    loss, score = figure.subplots(1, 2)
    loss.plot(epochs, [report.loss for report in reports], color=THIRD)
    loss.set(xlabel="epoch", ylabel="training loss per neuron and frame")
    for session in reports[-1].score_by_session if reports else ():
        by_session = [report.score_by_session.get(session, np.nan) for report in reports]
        score.plot(epochs, by_session, color=RECORDED, alpha=0.35, linewidth=0.8)
    score.plot(epochs, [report.score for report in reports], color=PREDICTED, label="all neurons")
    score.plot([], [], color=RECORDED, alpha=0.35, linewidth=0.8, label="one session")
    score.set(xlabel="epoch", ylabel="hold-out single-trial correlation")
    score.legend(frameon=False)
    for axes in (loss, score):
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def draw_traces(
    recorded: Float[np.ndarray, "k t"],
    predicted: Float[np.ndarray, "k t"],
    path: Path,
    *,
    neurons: Int[np.ndarray, " k"],
    correlations: Float[np.ndarray, " k"],
    frame_rate_hz: float,
    title: str,
) -> Path:
    """Draw recorded and predicted activity of a few neurons, one below the other.

    Args:
        recorded: responses of the neurons.
        predicted: what the encoder says for the same frames.
        path: the PNG file to write.
        neurons: unit ids, for the labels.
        correlations: score of each neuron over the whole hold-out, for the labels.
        frame_rate_hz: frames per second.
        title: what is shown.

    Returns:
        The PNG file.
    """
    figure = Figure(figsize=(9, 1.3 * len(recorded) + 0.6), layout="constrained")
    rows = figure.subplots(len(recorded), 1, sharex=True, squeeze=False)[:, 0]
    seconds = np.arange(recorded.shape[1]) / frame_rate_hz
    for axes, measured, modelled, unit, score in zip(
        rows, recorded, predicted, neurons, correlations, strict=True
    ):
        axes.fill_between(seconds, measured, color=RECORDED, alpha=0.35, linewidth=0, label="recorded")
        axes.plot(seconds, modelled, color=PREDICTED, linewidth=1.4, label="predicted")
        axes.set_ylabel(f"unit {unit}\nr = {score:.2f}", rotation=0, ha="right", va="center")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks([])
    rows[0].set_title(title)
    rows[0].legend(frameon=False, loc="upper right", ncols=2)
    rows[-1].set_xlabel("seconds")
    return _save(figure, path)


def median_neurons(correlations: Float[np.ndarray, " n"], *, num_neurons: int = 5) -> Int[np.ndarray, " k"]:
    """Return the neurons whose correlation is nearest to the median: neither the best nor the worst."""
    distance = np.abs(correlations - np.median(correlations))
    return np.sort(np.argsort(distance, kind="stable")[:num_neurons])


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
