"""How runs are executed on Ray: three ways that give the same numbers and cost different times to start."""

from dataclasses import dataclass
from typing import Literal, get_args

from training.names import nearest

Lane = Literal["actors", "train", "warm"]
LANES: tuple[Lane, ...] = get_args(Lane)

# Starting a group of workers takes 14 to 30 s on two cores (processes, imports, process group).
_GROUP_START_SECONDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneChoice:
    """A way to execute runs, and why.

    Attributes:
        lane: ``actors``: one process per run, which goes on to the next run when it ends. ``train``: each run
            is a Ray Train run of its own. ``warm``: a group of Ray Train workers takes run after run.
        reason: in words, for whoever watches.
    """

    lane: Lane
    reason: str


def choose_lane(wanted: str, *, workers_per_run: int, is_short: bool) -> LaneChoice:
    """Return how runs are executed.

    Args:
        wanted: a lane, or ``auto``.
        workers_per_run: processes of one run.
        is_short: a run takes about as long as starting a group of workers.

    Raises:
        ValueError: there is no such lane, or it cannot run several workers.
    """
    if wanted not in ("auto", *LANES):
        raise ValueError(f"--lane is {wanted!r}{nearest(wanted, ('auto', *LANES))}")
    if wanted == "actors" and workers_per_run > 1:
        raise ValueError(
            f"--lane is actors with {workers_per_run} workers per run, but an actor is one process: "
            "use --lane train or --lane warm"
        )
    for lane in LANES:
        if lane == wanted:
            return LaneChoice(lane=lane, reason="as asked for")
    if workers_per_run == 1:
        return LaneChoice(lane="actors", reason="one process per run, reused for the next")
    start = f"starting {workers_per_run} workers takes about {_GROUP_START_SECONDS} s"
    if is_short:
        return LaneChoice(lane="warm", reason=f"runs are short and {start}, so a group takes run after run")
    return LaneChoice(lane="train", reason=f"runs are long beside the start of their workers; {start}")
