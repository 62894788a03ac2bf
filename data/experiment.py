"""Plan a simulated data set: which mouse sees which video when, in which tier, and what is lost.

Mice come in pairs, an old one (float32, everything released) and a new one (float64, test tiers withheld),
that are shown one set of videos under permuted tiers. A few trials are lost: an old mouse keeps them as tier
``none``, a new one has them removed. That is where the unequal repeats of the data set come from.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data.calcium import LATENCY_FRAMES
from data.recording import Stimulus, Tier
from data.stimuli import Video, cut_times, jittered

MAIN_TIERS = (Tier.ORACLE, Tier.LIVE_MAIN, Tier.FINAL_MAIN)
TEST_TIERS = (Tier.LIVE_MAIN, Tier.LIVE_BONUS, Tier.FINAL_MAIN, Tier.FINAL_BONUS)

BONUS_CLASSES = (
    ((Stimulus.PINK_NOISE,), (Stimulus.GAUSSIAN_DOTS, Stimulus.RANDOM_DOTS)),
    ((Stimulus.PINK_NOISE,), (Stimulus.GAUSSIAN_DOTS, Stimulus.RANDOM_DOTS)),
    ((Stimulus.GABOR,), (Stimulus.PINK_NOISE, Stimulus.IMAGES)),
    ((Stimulus.IMAGES,), (Stimulus.PINK_NOISE, Stimulus.GABOR)),
    ((Stimulus.RANDOM_DOTS,), (Stimulus.GABOR, Stimulus.IMAGES)),
    ((Stimulus.GABOR,), (Stimulus.RANDOM_DOTS, Stimulus.IMAGES)),
    ((Stimulus.IMAGES,), (Stimulus.PINK_NOISE, Stimulus.GAUSSIAN_DOTS)),
    ((Stimulus.GAUSSIAN_DOTS,), (Stimulus.PINK_NOISE, Stimulus.IMAGES)),
    ((Stimulus.GAUSSIAN_DOTS,), (Stimulus.RANDOM_DOTS, Stimulus.GABOR)),
    ((Stimulus.RANDOM_DOTS,), (Stimulus.GAUSSIAN_DOTS, Stimulus.GABOR)),
)
"""Live and final bonus classes of the ten public mice, partners in turn: A F B J C G D H E I (measured)."""

_LOST_SHARE = 0.027
_LARGEST_LOSS = 2
"""Repeats of one video that may be lost: the data set has 8 to 10."""
_SHORT_BEHAVIOR_SHARE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """What to simulate; the defaults are the full size of Sensorium 2023.

    Attributes:
        mice: number of mice; 2 k and 2 k + 1 are partners.
        neurons: per mouse; one number for all, or one for each.
        frame_shape: height and width of the videos, pixels.
        train_clips: training videos of a set, each shown once.
        videos_per_tier: videos of the oracle and both main test tiers, and of each bonus class (random dots
            have a third more in the data set; here they have as many).
        repeats: showings of each of those, before losses.
        clip_frames: length of a natural clip; bonus classes are cut to about this length.
        spectrum_exponent: power of natural clips falls with this power of spatial frequency; the smaller, the
            more there is to see at the frequencies that neurons prefer.
        movie_speed: how many times faster than natural movies the natural clips change; neurons with a
            rebound answer to changes of some 3 Hz, and natural movies change more slowly.
        tap_rate: how fast neurons filter over time, see ``TemporalFilter``.
        rebound: how much they prefer what changes to what stays, see ``TemporalFilter``.
        latency_frames: from a neuron's drive to its calcium events, beside what they take to be sampled.
        signal_power: mean share of single-trial variance that repeats with the video.
        complex_share: share of complex cells.
        events_per_second: median event rate; the fewer the events, the larger the responses' variation.
        cycles_per_px: median preferred spatial frequency, per pixel of a 36 x 64 frame; receptive fields are
            the larger the lower it is.
        map_spread_px: standard deviation of the receptive-field centers, rows and columns, in pixels of a
            36 x 64 frame.
        retinotopic_scatter: how far receptive fields lie from where cortical position says; 1 is the spread
            of the map itself.
        gaze_reach_px: largest shift of the image by eye movements, in pixels of a 36 x 64 frame.
        seed: the only source of randomness.
    """

    mice: int = 10
    neurons: int | tuple[int, ...] = 8000
    frame_shape: tuple[int, int] = (36, 64)
    train_clips: int = 360
    videos_per_tier: int = 6
    repeats: int = 10
    clip_frames: int = 300
    spectrum_exponent: float = 2.95
    movie_speed: float = 1.0
    tap_rate: float = 0.9
    rebound: float = 1.0
    latency_frames: float = LATENCY_FRAMES
    signal_power: float = 0.2
    complex_share: float = 0.6
    events_per_second: float = 0.62
    cycles_per_px: float = 0.12
    map_spread_px: tuple[float, float] = (7.0, 12.0)
    retinotopic_scatter: float = 0.4
    gaze_reach_px: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {
            "mice": 1,
            "train_clips": 2,
            "videos_per_tier": 1,
            "repeats": 2,
            "clip_frames": 20,
            "seed": 0,
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        if min(self.neurons if isinstance(self.neurons, tuple) else (self.neurons,), default=0) < 1:
            raise ValueError(f"neurons is {self.neurons}, but must be at least 1 per mouse")
        if isinstance(self.neurons, tuple) and len(self.neurons) != self.mice:
            raise ValueError(
                f"neurons is {self.neurons}, but must be one number for each of {self.mice} mice"
            )
        if min(self.frame_shape) < 8:
            raise ValueError(f"frame_shape is {self.frame_shape}, but must be at least 8 pixels each way")
        for name in ("signal_power", "complex_share", "rebound"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be between 0 and 1")
        for name in ("gaze_reach_px", "retinotopic_scatter"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must not be negative")
        if not 0 <= self.latency_frames <= LATENCY_FRAMES:
            raise ValueError(
                f"latency_frames is {self.latency_frames}, but must be between 0 and {LATENCY_FRAMES:g}"
            )
        if min(self.map_spread_px) <= 0:
            raise ValueError(f"map_spread_px is {self.map_spread_px}, but must be positive")
        for name in ("events_per_second", "cycles_per_px", "movie_speed", "tap_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0")

    @classmethod
    def for_scale(
        cls,
        scale: str,
        *,
        mice: int | None = None,
        neurons: int | tuple[int, ...] | None = None,
        train_clips: int | None = None,
        signal_power: float | None = None,
        seed: int = 0,
    ) -> "SimulationConfig":
        """Return the preset of a scale with some of its fields replaced.

        ``demo`` is made to be learned in a minute on two cores, from twenty minutes of movie: frames are
        square and small, half of the variance of single trials is signal (real recordings: a fifth), neurons
        fire sixty times as often as real ones, all are simple cells with large receptive fields that look at
        the middle of the screen, the map has no scatter, the eye moves little, and movies have more contrast
        where the cells look for it. Cells answer to what is on the screen as long as it stays, and their
        answer begins within two frames instead of eight; real ones answer to changes. What is easy there says
        nothing about real recordings.
        ``full`` has the sizes and statistics of the data set.
        """
        if scale not in PRESETS:
            raise ValueError(f"scale is {scale!r}, but must be one of {', '.join(PRESETS)}")
        chosen = {"mice": mice, "neurons": neurons, "train_clips": train_clips, "signal_power": signal_power}
        changes: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        return replace(PRESETS[scale], **changes, seed=seed)

    @property
    def movie_clips_per_set(self) -> int:
        """Distinct natural clips that a pair of mice is shown."""
        return self.train_clips + len(MAIN_TIERS) * self.videos_per_tier

    def num_neurons(self, mouse: int) -> int:
        """Return how many neurons a mouse has."""
        return self.neurons[mouse] if isinstance(self.neurons, tuple) else self.neurons


PRESETS = {
    "demo": SimulationConfig(
        mice=2,
        neurons=300,
        frame_shape=(16, 16),
        train_clips=320,
        videos_per_tier=4,
        repeats=4,
        clip_frames=120,
        spectrum_exponent=2.0,
        tap_rate=2.0,
        rebound=0.0,
        latency_frames=0.0,
        signal_power=0.5,
        complex_share=0.0,
        events_per_second=40.0,
        cycles_per_px=0.06,
        map_spread_px=(1.5, 2.5),
        retinotopic_scatter=0.0,
        gaze_reach_px=0.5,
    ),
    "full": SimulationConfig(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTrial:
    """One presentation.

    Attributes:
        index: its file number.
        tier: its split; ``none`` for a lost trial of an old mouse.
        video: what was shown.
        times: where the cuts came this time, and last the number of frames.
        behavior_frames: valid frames of the behavior array, at times one less than the others.
        phase: where the trial began between two calcium samples, 0..1.
        withheld: the responses are in the answer key only.
        trial_idx: number in the experiment, or several joined by '--' for image presentations.
    """

    index: int
    tier: Tier
    video: Video
    times: tuple[int, ...]
    behavior_frames: int
    phase: float
    withheld: bool
    trial_idx: str

    @property
    def num_frames(self) -> int:
        """Frames of video and responses."""
        return self.times[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMouse:
    """One mouse's session and trials, in the order of their file numbers."""

    mouse: int
    session: str
    is_new: bool
    trials: tuple[PlannedTrial, ...] = field(repr=False)

    @property
    def num_padded_frames(self) -> int:
        """Length of the stored arrays: that of the longest trial."""
        return max(trial.num_frames for trial in self.trials)


def plan_mouse(config: SimulationConfig, mouse: int) -> PlannedMouse:
    """Decide everything about a mouse's trials that does not need a video to be drawn."""
    generator = np.random.default_rng([config.seed, mouse, 0])
    is_new = mouse % 2 == 1
    shown = [(tier, video) for tier, video, repeats in _videos_of(config, mouse) for _ in range(repeats)]
    lost = _losses(shown, repeats=config.repeats, generator=generator)
    kept = [
        (Tier.NONE if number in lost else tier, video, number)
        for number, (tier, video) in enumerate(shown)
        if not (is_new and number in lost)
    ]
    order = generator.permutation(len(kept))
    trials = tuple(
        _plan_trial(index, *kept[position], is_new=is_new, generator=generator)
        for index, position in enumerate(order)
    )
    return PlannedMouse(mouse=mouse, session=session_name(config.seed, mouse), is_new=is_new, trials=trials)


def session_name(seed: int, mouse: int) -> str:
    """Return a name like those of the data set, with numbers that no public mouse has."""
    generator = np.random.default_rng([seed, mouse, 1])
    animal = 40_000 + 100 * mouse + int(generator.integers(100))
    session, scan = (int(number) for number in generator.integers(2, 13, 2))
    release = hashlib.sha256(f"simulated {seed} {'new' if mouse % 2 else 'old'}".encode()).hexdigest()[:32]
    return f"dynamic{animal}-{session}-{scan}-Video-{release}"


def _videos_of(config: SimulationConfig, mouse: int) -> list[tuple[Tier, Video, int]]:
    """List a mouse's videos with tier and number of showings; partners get the same set under other tiers."""

    def video(stimulus: Stimulus, number: int) -> Video:
        return Video(
            video_id=f"{stimulus}-{mouse // 2}-{number:03d}",
            stimulus=stimulus,
            stimulus_set=mouse // 2,
            number=number,
            seed=config.seed,
            num_frames=config.clip_frames,
            spectrum_exponent=config.spectrum_exponent,
            speed=config.movie_speed,
        )

    result = [(Tier.TRAIN, video(Stimulus.MOVIE, number), 1) for number in range(config.train_clips)]
    order = np.random.default_rng([config.seed, mouse, 2]).permutation(
        config.movie_clips_per_set - config.train_clips
    )
    for place, number in enumerate(order.tolist()):
        tier = MAIN_TIERS[place // config.videos_per_tier]
        result.append((tier, video(Stimulus.MOVIE, config.train_clips + number), config.repeats))
    live, final = BONUS_CLASSES[mouse % len(BONUS_CLASSES)]
    for tier, classes in ((Tier.LIVE_BONUS, live), (Tier.FINAL_BONUS, final)):
        for stimulus in classes:
            num_videos = config.videos_per_tier
            if stimulus is Stimulus.RANDOM_DOTS:
                num_videos = round(num_videos * 8 / 6)
            result += [(tier, video(stimulus, number), config.repeats) for number in range(num_videos)]
    return result


def _losses(shown: list[tuple[Tier, Video]], *, repeats: int, generator: np.random.Generator) -> set[int]:
    """Choose the trials that failed: few, at most two of a repeated video, at least one in oracle."""
    oracle = [number for number, (tier, _) in enumerate(shown) if tier is Tier.ORACLE]
    candidates = [int(generator.choice(oracle)), *np.flatnonzero(generator.random(len(shown)) < _LOST_SHARE)]
    lost: set[int] = set()
    of_video: Counter[str] = Counter()
    for number in map(int, candidates):
        tier, video = shown[number]
        limit = 1 if tier is Tier.TRAIN else min(_LARGEST_LOSS, repeats - 2)
        if number not in lost and of_video[video.video_id] < limit:
            lost.add(number)
            of_video[video.video_id] += 1
    return lost


def _plan_trial(
    index: int, tier: Tier, video: Video, number: int, *, is_new: bool, generator: np.random.Generator
) -> PlannedTrial:
    times = tuple(jittered(cut_times(video), stimulus=video.stimulus, generator=generator))
    is_test = tier in TEST_TIERS
    is_short = is_test and generator.random() < _SHORT_BEHAVIOR_SHARE
    # Ten image presentations were merged into one trial; their numbers were joined.
    merged = 10 if video.stimulus is Stimulus.IMAGES else 1
    return PlannedTrial(
        index=index,
        tier=tier,
        video=video,
        times=times,
        behavior_frames=times[-1] - int(is_short),
        phase=float(generator.random()),
        withheld=is_new and is_test,
        trial_idx="--".join(str(number * merged + part) for part in range(merged)),
    )
