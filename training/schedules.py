"""Learning rate over a run, and what to do after each epoch: go on, go back to the best parameters, stop."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the loop does after an epoch.

    Attributes:
        improved: the epoch's score is the best so far; keep its parameters.
        restore_best: put the best parameters back before going on (the optimizer's state stays).
        stop: end the run.
    """

    improved: bool
    restore_best: bool = False
    stop: bool = False


@runtime_checkable
class Schedule(Protocol):
    """The schedule of one run; its state makes a resumed run equal to an uninterrupted one."""

    def rate_factor(self, step: int, epoch: int) -> float:
        """Return what all learning rates are multiplied with.

        Args:
            step: optimizer steps done in the run.
            epoch: epochs finished.
        """

    def end_epoch(self, score: float) -> Decision:
        """Take in the score of the epoch that ended.

        Raises:
            ValueError: the score is not finite.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


@runtime_checkable
class ScheduleConfig(Protocol):
    """What every schedule's configuration can do; the fields differ."""

    @property
    def keep(self) -> Literal["best", "last"]:
        """Which epoch's parameters are the result of the run."""

    def build(self, *, epochs: int, steps_per_epoch: int) -> Schedule:
        """Start the schedule of a run of at most ``epochs`` epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauConfig:
    """Wait for the score to stop improving; then restore the best parameters and train on at a lower rate.

    The defaults are the baselines' (starter kit), where two mechanisms run side by side: early stopping
    restores the best parameters after 5 epochs without improvement and stops the fourth time, while a
    reduction of its own lowers the rate on the 6th such epoch (torch's ReduceLROnPlateau with patience 5).
    ``VIVIT_SCHEDULE`` has ViV1T's single mechanism.

    Attributes:
        patience: epochs without improvement that make a plateau.
        plateaus: the plateau of this number stops the run.
        resets: an improvement starts the count of plateaus again.
        factor: what the rate is multiplied with when it is lowered.
        rate_patience: the rate is lowered after more than this many epochs without improvement, counted
            apart from plateaus; None lowers it at each plateau.
        min_factor: the rate falls no lower than this share of the first (baselines: 1e-4 of 5e-3).
        tolerance: an improvement must exceed the best score by more than this.
        collapse_below: a score no higher than this counts as collapse once the best score has reached
            ``collapse_best``: the best parameters are restored and nothing else changes. None: no guard.
        collapse_best: see ``collapse_below``.
    """

    patience: int = 5
    plateaus: int = 4
    resets: bool = False
    factor: float = 0.3
    rate_patience: int | None = 5
    min_factor: float = 0.02
    tolerance: float = 1e-6
    collapse_below: float | None = None
    collapse_best: float = 0.05

    def __post_init__(self) -> None:
        """Refuse settings that never act."""
        for name in ("patience", "plateaus"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor is {self.factor}, but must be between 0 and 1")
        if self.rate_patience is not None and self.rate_patience < 0:
            raise ValueError(f"rate_patience is {self.rate_patience}, but must be 0 or more, or none")
        if not 0 <= self.min_factor <= 1:
            raise ValueError(f"min_factor is {self.min_factor}, but must be between 0 and 1")
        if self.tolerance < 0:
            raise ValueError(f"tolerance is {self.tolerance}, but must be 0 or more")
        if self.collapse_below is not None and self.collapse_below >= self.collapse_best:
            raise ValueError(
                f"collapse_below is {self.collapse_below}, "
                f"but must be below collapse_best, {self.collapse_best}"
            )

    @property
    def keep(self) -> Literal["best", "last"]:
        """The best epoch's parameters are the result."""
        return "best"

    def build(self, *, epochs: int, steps_per_epoch: int) -> "Plateau":
        """Start the schedule; it depends on scores alone."""
        del epochs, steps_per_epoch
        return Plateau(self)


VIVIT_SCHEDULE = PlateauConfig(
    plateaus=3, resets=True, rate_patience=None, min_factor=0.0, tolerance=0.0, collapse_below=0.005
)
"""ViV1T's released scheduler: max_reduce 3, lr_patience 5, factor 0.3.

It rounds the score to two digits before it compares with 0, so up to 0.005 counts as collapsed.
"""


@dataclass(slots=True, kw_only=True)
class _PlateauState:
    best: float = -math.inf
    waited: int = 0
    plateaus: int = 0
    rate_waited: int = 0
    rate_best: float = -math.inf
    reductions: int = 0


class Plateau:
    """See ``PlateauConfig``."""

    def __init__(self, config: PlateauConfig) -> None:
        self._config = config
        self._state = _PlateauState()

    def rate_factor(self, step: int, epoch: int) -> float:
        """Return the factor that plateaus have left."""
        del step, epoch
        return max(self._config.factor**self._state.reductions, self._config.min_factor)

    def end_epoch(self, score: float) -> Decision:
        """Count the epoch as an improvement, a collapse or a wait."""
        _require_finite(score)
        config, state = self._config, self._state
        if score > state.best + config.tolerance:
            state.best, state.waited = score, 0
            if config.resets:
                state.plateaus = 0
            self._count_for_rate(score)
            return Decision(improved=True)
        if self._collapsed(score):
            return Decision(improved=False, restore_best=True)
        self._count_for_rate(score)
        state.waited += 1
        if state.waited < config.patience:
            return Decision(improved=False)
        state.waited, state.plateaus = 0, state.plateaus + 1
        stop = state.plateaus >= config.plateaus
        if config.rate_patience is None and not stop:
            state.reductions += 1
        return Decision(improved=False, restore_best=True, stop=stop)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and the best score."""
        return asdict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from counters and best score."""
        self._state = _PlateauState(**state)

    def _collapsed(self, score: float) -> bool:
        limit = self._config.collapse_below
        return limit is not None and score <= limit and self._state.best >= self._config.collapse_best

    def _count_for_rate(self, score: float) -> None:
        if self._config.rate_patience is None:
            return
        state = self._state
        if score > state.rate_best + self._config.tolerance:
            state.rate_best, state.rate_waited = score, 0
            return
        state.rate_waited += 1
        if state.rate_waited > self._config.rate_patience:
            state.rate_waited, state.reductions = 0, state.reductions + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochCosineConfig:
    """Warm up over steps, hold, then follow a cosine that moves once per epoch; the last epoch is the result.

    The defaults are Dynamic-V1FM's for 180 epochs (released config; warm-up as in mmcv 0.5.5).

    Attributes:
        warmup_steps: steps over which the rate rises linearly.
        warmup_factor: share of the rate at the first step.
        constant_epochs: epochs before the cosine.
        final_factor: share of the rate that the cosine reaches one epoch after the last.
    """

    warmup_steps: int = 600
    warmup_factor: float = 1 / 3
    constant_epochs: int = 80
    final_factor: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse negative lengths and shares above 1."""
        for name in ("warmup_steps", "constant_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 or more")
        for name in ("warmup_factor", "final_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be between 0 and 1")

    @property
    def keep(self) -> Literal["best", "last"]:
        """The last epoch's parameters are the result."""
        return "last"

    def build(self, *, epochs: int, steps_per_epoch: int) -> "Fixed":
        """Start the schedule.

        Raises:
            ValueError: no epoch is left for the cosine.
        """
        if epochs <= self.constant_epochs:
            raise ValueError(
                f"constant_epochs is {self.constant_epochs}, but must be less than the run's {epochs} epochs"
            )
        del steps_per_epoch
        cosine_epochs = epochs - self.constant_epochs

        def factor(step: int, epoch: int) -> float:
            held = _cosine((epoch - self.constant_epochs) / cosine_epochs, self.final_factor)
            if step >= self.warmup_steps:
                return held
            return held * (1 - (1 - step / self.warmup_steps) * (1 - self.warmup_factor))

        return Fixed(factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosineConfig:
    """Warm up from a rate of 0, then follow a cosine, both step by step; the last epoch is the result.

    The defaults are DwiseNeuro's for 21 epochs (released config: 3 + 18).

    Attributes:
        warmup_epochs: epochs over which the rate rises linearly; the very first step has rate 0.
        final_factor: share of the rate that the cosine reaches one step after the last (2.4e-5 of 2.4e-3).
    """

    warmup_epochs: int = 3
    final_factor: float = 0.01

    def __post_init__(self) -> None:
        """Refuse negative lengths and shares above 1."""
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, but must be 0 or more")
        if not 0 <= self.final_factor <= 1:
            raise ValueError(f"final_factor is {self.final_factor}, but must be between 0 and 1")

    @property
    def keep(self) -> Literal["best", "last"]:
        """The last epoch's parameters are the result."""
        return "last"

    def build(self, *, epochs: int, steps_per_epoch: int) -> "Fixed":
        """Start the schedule.

        Raises:
            ValueError: no epoch is left for the cosine.
        """
        if epochs <= self.warmup_epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}, but must be less than the run's {epochs} epochs"
            )
        warmup_steps = self.warmup_epochs * steps_per_epoch
        cosine_steps = (epochs - self.warmup_epochs) * steps_per_epoch

        def factor(step: int, epoch: int) -> float:
            del epoch
            if step < warmup_steps:
                return step / warmup_steps
            return _cosine((step - warmup_steps) / cosine_steps, self.final_factor)

        return Fixed(factor)


class Fixed:
    """A schedule that was decided before the run: scores change nothing.

    Args:
        factor: from optimizer steps done and epochs finished to the factor of all learning rates.
    """

    def __init__(self, factor: Callable[[int, int], float]) -> None:
        self._factor = factor
        self._best = -math.inf

    def rate_factor(self, step: int, epoch: int) -> float:
        """Return what all learning rates are multiplied with."""
        return self._factor(step, epoch)

    def end_epoch(self, score: float) -> Decision:
        """Note the best score."""
        _require_finite(score)
        improved = score > self._best
        self._best = max(self._best, score)
        return Decision(improved=improved)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score."""
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the best score."""
        self._best = state["best"]


def _cosine(progress: float, final_factor: float) -> float:
    progress = min(max(progress, 0.0), 1.0)
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


def _require_finite(score: float) -> None:
    if not math.isfinite(score):
        raise ValueError(f"score is {score}, but must be a number: the run has failed")
