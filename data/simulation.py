"""Simulate recordings in the raw Sensorium-2023 format, with the truth stored apart.

``DIR/<session>/`` is a mouse folder as the public loaders read it; ``DIR/truth/<session>/`` is what nobody
has for a real mouse (``data.truth`` reads it). Only one trial is in memory at a time.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from data.behavior import PROFILES, Traces, shift_by_gaze, simulate_traces
from data.calcium import averaging_matrix, draw_trace, sample_times
from data.experiment import PlannedMouse, SimulationConfig, plan_mouse
from data.movies import MovieClips
from data.population import Population, draw_cells, draw_coordinates, draw_unit_ids
from data.raw_format import RawWriter
from data.recording import Stimulus
from data.stimuli import Video, draw_video
from data.temporal import TemporalFilter
from data.truth import TruthWriter
from data.tuning import Presentation, Tuning, modulation_gain, tune

OnProgress = Callable[[str, int, int], None]
"""Called with the session, the trials done and the trials in all."""

_LARGE_PRODUCT = 2_000_000
"""Neurons times pixels from which several threads help; the demo's spend six times its work on waiting."""
_CALIBRATION_VIDEOS = 8
_CALIBRATION_REPEATS = 3


def simulate(
    to: Path,
    config: SimulationConfig,
    *,
    movies: MovieClips | None = None,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Write the recordings of all mice and return their folders.

    A mouse that is complete in ``to`` is kept when it was simulated with the same configuration.

    Args:
        to: folder for the mouse folders and ``truth``.
        config: what to simulate.
        movies: natural clips from films instead of natural-like noise.
        on_progress: told about every trial.
    """
    folders = []
    for mouse in range(config.mice):
        plan = plan_mouse(config, mouse)
        folder = to / plan.session
        if not _is_complete(folder, _settings(config, movies)):
            size = config.num_neurons(mouse) * math.prod(config.frame_shape)
            with threadpool_limits(limits=1 if size < _LARGE_PRODUCT else None, user_api="blas"):
                _simulate_mouse(to, plan, config, movies=movies, on_progress=on_progress)
        folders.append(folder)
    return folders


def count_trials(config: SimulationConfig) -> int:
    """Return the number of trials of all mice, for progress bars."""
    return sum(len(plan_mouse(config, mouse).trials) for mouse in range(config.mice))


def _simulate_mouse(
    to: Path,
    plan: PlannedMouse,
    config: SimulationConfig,
    *,
    movies: MovieClips | None,
    on_progress: OnProgress | None,
) -> None:
    subject = _Subject(plan, config, movies=movies)
    tuning = subject.tune()
    raw = RawWriter(
        to / plan.session,
        num_padded_frames=plan.num_padded_frames,
        dtype=np.dtype(np.float64 if plan.is_new else np.float32),
        unit_ids=subject.unit_ids,
        coordinates_um=subject.coordinates_um.astype(np.int64),
    )
    truth = TruthWriter(to / "truth" / plan.session, cells=subject.population.cells, tuning=tuning)
    for done, trial in enumerate(plan.trials, start=1):
        video, traces, shown = subject.present(trial.video, times=trial.times, seeds=(4, trial.index))
        stimulus_rates = tuning.stimulus_rates(shown.drive)
        responses = draw_trace(
            stimulus_rates * modulation_gain(subject.population.cells, shown.modulators),
            scale=subject.population.cells.scale,
            num_frames=shown.num_frames,
            phase=shown.phase,
            generator=np.random.default_rng([config.seed, plan.mouse, 5, trial.index]),
        )
        raw.write_trial(
            trial.index,
            tier=trial.tier,
            video=video,
            behavior=traces.behavior[:, : trial.behavior_frames],
            pupil=traces.pupil,
            responses=None if trial.withheld else responses,
        )
        truth.write_trial(trial, shown, stimulus_rates=stimulus_rates, answer=responses)
        if on_progress is not None:
            on_progress(plan.session, done, len(plan.trials))
    truth.finish(_settings(config, movies))
    raw.finish(trial_idx=[trial.trial_idx for trial in plan.trials] if plan.is_new else None)


class _Subject:
    """A mouse in front of the screen: its neurons, eyes and habits."""

    def __init__(self, plan: PlannedMouse, config: SimulationConfig, *, movies: MovieClips | None) -> None:
        generator = np.random.default_rng([config.seed, plan.mouse, 3])
        num_neurons = config.num_neurons(plan.mouse)
        self.unit_ids = draw_unit_ids(num_neurons, generator)
        self.coordinates_um = draw_coordinates(num_neurons, generator)
        cells = draw_cells(
            self.coordinates_um,
            frame_shape=config.frame_shape,
            complex_share=config.complex_share,
            events_per_second=config.events_per_second,
            cycles_per_px=config.cycles_per_px,
            map_spread_px=config.map_spread_px,
            scatter=config.retinotopic_scatter,
            generator=generator,
        )
        self.population = Population(
            cells,
            frame_shape=config.frame_shape,
            temporal=TemporalFilter(tap_rate=config.tap_rate, rebound=config.rebound),
        )
        self._profile = PROFILES[plan.mouse % len(PROFILES)]
        self._plan, self._config, self._movies = plan, config, movies

    def tune(self) -> Tuning:
        """Show some training videos a few times and solve for the wanted signal power."""
        config = self._config
        # The lowest numbers of a set are its training videos, also where this mouse lost one of them.
        videos = {
            trial.video.number: trial.video
            for trial in self._plan.trials
            if trial.video.stimulus is Stimulus.MOVIE and trial.video.number < config.train_clips
        }
        presentations = [
            self.present(videos[number], times=None, seeds=(6, number, repeat))[2]
            for number in sorted(videos)[:_CALIBRATION_VIDEOS]
            for repeat in range(_CALIBRATION_REPEATS)
        ]
        return tune(presentations, self.population.cells, signal_power=config.signal_power)

    def present(
        self, video: Video, *, times: tuple[int, ...] | None, seeds: tuple[int, ...]
    ) -> tuple[Float[np.ndarray, "t h w"], Traces, Presentation]:
        """Show a video; return it with the mouse's behavior and what drives the neurons."""
        config = self._config
        frames = self._frames(video, times)
        generator = np.random.default_rng([config.seed, self._plan.mouse, *seeds])
        phase = float(generator.random())
        traces = simulate_traces(len(frames), self._profile, generator)
        reach_px = config.gaze_reach_px * config.frame_shape[0] / 36
        drive = self.population.drive(shift_by_gaze(frames, traces.gaze, reach_px=reach_px))
        at = np.clip(sample_times(len(frames), phase), 0, len(frames) - 1)
        shown = Presentation(
            video=video.number,
            drive=drive @ averaging_matrix(len(frames), phase, latency_frames=config.latency_frames),
            modulators=np.stack(
                [np.interp(at, np.arange(len(frames)), trace) for trace in traces.modulators]
            ),
            num_frames=len(frames),
            phase=phase,
        )
        return frames, traces, shown

    def _frames(self, video: Video, times: tuple[int, ...] | None) -> Float[np.ndarray, "t h w"]:
        config = self._config
        if self._movies is not None and video.stimulus is Stimulus.MOVIE:
            return self._movies.draw(video, times=times)
        return draw_video(video, frame_shape=config.frame_shape, times=None if times is None else list(times))


def _settings(config: SimulationConfig, movies: MovieClips | None) -> dict[str, object]:
    """Return what makes one simulation differ from another, as JSON stores it."""
    settings = asdict(config) | {"movies": None if movies is None else movies.fingerprint}
    restored: dict[str, object] = json.loads(json.dumps(settings))
    return restored


def _is_complete(folder: Path, settings: dict[str, object]) -> bool:
    """Tell whether a mouse is there; another simulation's mouse of the same name is an error."""
    if not folder.exists():
        return False
    settings_file = folder.parent / "truth" / folder.name / "settings.json"
    if not settings_file.exists() or json.loads(settings_file.read_text()) != settings:
        raise FileExistsError(
            f"{folder} was simulated with other settings; remove it, or choose another folder or seed"
        )
    return True
