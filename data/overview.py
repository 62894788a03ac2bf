"""One page that shows what recordings hold: their trials, videos, activity, behavior and neurons."""

from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from data.array_files import write_bytes
from data.page import picture, section, table, whole
from data.recording import Recording, Stimulus, Tier, Trial
from data.svg import BLUE, GRAY, GREEN, ORANGE, WIDTH, rule, styled

_STRIP_FRAMES = 6
_SAMPLED_TRIALS = 24
"""Trials whose activity is read; all of a real mouse are 15 GB."""
_SHOWN_NEURONS = 80
_STILL = 1.0
"""Running speed below which a mouse counts as standing, cm/s."""


def write_overview(
    recordings: Sequence[Recording], to: Path, *, on_session: Callable[[str], None] = lambda _: None
) -> Path:
    """Write the page.

    Args:
        recordings: what to show; one section each.
        to: the HTML file, self-contained.
        on_session: told about each session before it is drawn.

    Returns:
        The file.

    Raises:
        ValueError: there are no recordings.
    """
    if not recordings:
        raise ValueError("recordings is empty, but must hold at least one session")
    sections = [_counts(recordings)]
    with styled():
        for recording in recordings:
            on_session(recording.session)
            sections.append(_session(recording))
    num_neurons = sum(len(recording.neurons.ids) for recording in recordings)
    videos = {trial.video_id for recording in recordings for trial in recording.trials}
    summary = (
        f"<p>{len(recordings)} recording{'s' if len(recordings) > 1 else ''}, {num_neurons:,} neurons, "
        f"{sum(len(recording.trials) for recording in recordings):,} trials of {len(videos):,} videos; "
        f"<code>{escape(str(recordings[0].store))}</code></p>"
    )
    write_bytes(to, whole(title="Recordings", summary=summary, body="\n".join(sections)).encode())
    return to


def _counts(recordings: Sequence[Recording]) -> str:
    tiers = [tier for tier in Tier if any(trial.tier is tier for each in recordings for trial in each.trials)]
    rows = []
    for recording in recordings:
        by_tier = Counter(trial.tier for trial in recording.trials)
        own = {trial.video_id for trial in recording.trials}
        others = {t.video_id for each in recordings if each is not recording for t in each.trials}
        minutes = sum(trial.num_frames for trial in recording.trials) / recording.frame_rate_hz / 60
        rows.append(
            [
                recording.session,
                f"{len(recording.neurons.ids):,}",
                " x ".join(str(size) for size in recording.frame_shape),
                f"{minutes:.1f}",
                *(str(by_tier[tier]) for tier in tiers),
                str(sum(trial.has_responses for trial in recording.trials)),
                str(len(own)),
                str(len(own & others)),
            ]
        )
    heading = [
        "session",
        "neurons",
        "pixels",
        "minutes",
        *tiers,
        "with responses",
        "videos",
        "seen by others",
    ]
    return section("What there is", table(heading, rows), "Trials by tier; minutes of all trials together.")


def _session(recording: Recording) -> str:
    sampled = _spread([trial for trial in recording.trials if trial.has_responses])
    parts = [
        picture(_draw_videos(recording), f"{recording.session} videos"),
        picture(_draw_activity(recording, sampled), f"{recording.session} activity"),
        picture(_draw_behavior(recording), f"{recording.session} behavior"),
    ]
    note = (
        f"Activity of {len(sampled)} trials spread over the recording; "
        "behavior of all trials, in the order of their files."
    )
    return section(recording.session, "\n".join(parts), note)


def _spread(trials: Sequence[Trial]) -> list[Trial]:
    places = np.linspace(0, len(trials) - 1, min(_SAMPLED_TRIALS, len(trials))).round().astype(int)
    return [trials[place] for place in places]


def _draw_videos(recording: Recording) -> Figure:
    """Draw one trial of each kind of stimulus as a strip of frames."""
    first = {
        kind: next((trial for trial in recording.trials if trial.stimulus is kind), None) for kind in Stimulus
    }
    shown = {kind: trial for kind, trial in first.items() if trial is not None}
    height, width = recording.frame_shape
    # 1.5 inches of the width are the strip's name.
    figure = Figure(
        figsize=(WIDTH, len(shown) * (WIDTH - 1.5) / _STRIP_FRAMES * height / width + 0.3),
        layout="constrained",
    )
    rows = figure.subplots(len(shown), _STRIP_FRAMES, squeeze=False)
    for row, (kind, trial) in zip(rows, shown.items(), strict=True):
        video = recording.video(trial)
        for axes, frame in zip(row, np.linspace(0, trial.num_frames - 1, len(row)).astype(int), strict=True):
            axes.imshow(np.asarray(video[frame], np.float32), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{frame / recording.frame_rate_hz:.1f} s", fontsize=7)
        row[0].set_ylabel(kind.replace("_", "\n"), rotation=0, ha="right", va="center")
    return figure


def _draw_activity(recording: Recording, sampled: Sequence[Trial]) -> Figure | None:
    if not sampled:
        return None
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    raster, spread, places = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    responses = np.concatenate([_responses(recording, trial) for trial in sampled], axis=1)
    deviation = responses.std(axis=1)
    of = sampled[len(sampled) // 2]
    neurons = np.linspace(0, len(deviation) - 1, min(_SHOWN_NEURONS, len(deviation))).astype(int)
    scaled = _responses(recording, of)[neurons] / np.maximum(deviation[neurons], 1e-12)[:, None]
    seconds = of.num_frames / recording.frame_rate_hz
    raster.imshow(
        scaled,
        aspect="auto",
        cmap="viridis",
        vmin=0,
        vmax=4,
        extent=(0, seconds, len(neurons), 0),
        interpolation="nearest",
    )
    raster.set(xlabel="s", ylabel="neuron", yticks=[], title=f"trial {of.index}, in standard deviations")
    ratio = responses.max(axis=1) / np.maximum(deviation, 1e-12)
    spread.hist(ratio[deviation > 0], bins=30, color=BLUE)
    still = int((deviation == 0).sum())
    spread.set(xlabel="largest / standard deviation", ylabel="neurons", title=f"{still} never active")
    rule(spread)
    x, y, depth = recording.neurons.coordinates_um.T
    points = places.scatter(x, y, c=depth, s=3, cmap="viridis", linewidths=0, rasterized=True)
    places.set(xlabel="um", ylabel="um", title="positions, by depth", aspect="equal")
    figure.colorbar(points, ax=places, label="um deep")
    return figure


def _responses(recording: Recording, trial: Trial) -> Float[np.ndarray, "n t"]:
    responses = recording.responses(trial)
    assert responses is not None
    return np.asarray(responses, np.float64)


def _draw_behavior(recording: Recording) -> Figure:
    pupil, speed = np.concatenate([recording.behavior(trial) for trial in recording.trials], axis=1)
    center = np.concatenate([recording.pupil(trial) for trial in recording.trials], axis=1)
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    running, dilation, gaze = figure.subplots(1, 3)
    moving = float((np.abs(speed) >= _STILL).mean())
    for axes, values, color, label in (
        (running, speed, ORANGE, "running speed, as recorded"),
        (dilation, pupil, GREEN, "pupil dilation, camera pixels"),
    ):
        axes.hist(values[np.isfinite(values)], bins=60, color=color)
        axes.set(xlabel=label, ylabel="frames", yscale="log")
        rule(axes)
    running.set_title(f"runs in {moving:.0%} of frames")
    gone = 1 - float(np.isfinite(pupil).mean())
    dilation.set_title(f"missing in {gone:.1%} of frames")
    every = max(1, center.shape[1] // 4000)
    gaze.plot(*center[:, ::every], ".", markersize=1.5, color=GRAY, rasterized=True)
    gaze.set(xlabel="camera pixels", ylabel="camera pixels", title="pupil center")
    return figure
