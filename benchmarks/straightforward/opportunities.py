"""What single changes of the mathematics give: each with and without, in turn, at published sizes.

The sizes are those of one clip (DwiseNeuro: two; the GRU: twenty frames) and 7,863 neurons. Each pair
computes the same numbers, which is checked before anything is measured.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.straightforward import single_changes as changes
from benchmarks.straightforward.work import Work, as_tuple

LARGEST_DIFFERENCE = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Opportunity:
    """One change.

    Attributes:
        name: its number in the list the models were written from.
        family: the model it is measured in.
        what: what is done instead of what.
        make: builds the work without and with it; work that asks for gradients returns them.
    """

    name: str
    family: str
    what: str
    make: Callable[[], tuple[Work, Work]]


def compare(opportunity: Opportunity, *, repeats: int, threads: int) -> tuple[float, float, float]:
    """Return CPU milliseconds without and with the change, and the median ratio of neighbors.

    Raises:
        ValueError: the two do not compute the same.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    without, with_it = opportunity.make()
    for a, b in zip(as_tuple(without()), as_tuple(with_it()), strict=True):
        difference = ((a - b).abs().max() / a.abs().max()).item()
        if not difference <= LARGEST_DIFFERENCE:
            raise ValueError(
                f"{opportunity.name} ({opportunity.what}) differs by {difference:.1e} of the largest number, "
                f"but must differ by at most {LARGEST_DIFFERENCE}"
            )
    times = [(_cpu_ms(without), _cpu_ms(with_it)) for _ in range(repeats)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return medians[0], medians[1], statistics.median(a / b for a, b in times)


def _cpu_ms(work: Work) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


ROWS: tuple[tuple[str, str, str, Callable[[], tuple[Work, Work]]], ...] = (
    ("P1", "factorized", "position net kept in evaluation, for three passes", changes.positions_once),
    ("P2", "vivit", "readout without a copy of the features per neuron", changes.readout),
    ("P3", "gru", "rotated kernels built once a step, for three times", changes.regularizer_once),
    ("P7", "gru", "three convolutions a frame instead of six", partial(changes.recurrence, fourier=False)),
    ("P8", "gru", "9 x 9 kernels by Fourier transform, after P7", partial(changes.recurrence, fourier=True)),
    ("P9", "factorized", "channels-last, training", partial(changes.factorized, training=True)),
    ("P9", "factorized", "and norm in kernels, evaluation", partial(changes.factorized, training=False)),
    ("P10", "vivit", "tokens without the matrix of patches", changes.tokenizer),
    ("P11", "vivit", "behavior's code apart from the features", changes.behavior_code),
    ("P13", "v1fm", "one sampling for all levels (with P2 and P14)", changes.one_sampling),
    ("P14", "v1fm", "refine pseudo-neurons, then hand out", changes.refine_first),
    ("P15", "v1fm", "levels that are not in use not read", changes.unused_levels),
    ("P16", "v1fm", "masks and biases of attention kept, evaluation", changes.masks_kept),
    ("P16", "v1fm", "masks kept, a bias per kind of window, training", changes.biases_in_training),
    ("P19", "dwiseneuro", "one readout instead of all ten", changes.one_readout),
    ("P20", "dwiseneuro", "288 targets by one masked copy a mouse", changes.distillation_targets),
    ("P22", "dwiseneuro", "a block channels-last, depthwise in 2D", changes.depthwise),
    ("-", "dwiseneuro", "batch norm of the expansion in its product", changes.expansion_norm),
)
OPPORTUNITIES = tuple(
    Opportunity(name=name, family=family, what=what, make=make) for name, family, what, make in ROWS
)
"""Single changes, in the order of their numbers."""
