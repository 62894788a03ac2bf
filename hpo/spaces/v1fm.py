"""The Dynamic-V1FM space: what its team tried by hand, and what its ensemble varies."""

from itertools import combinations

from hpo.space import Ask

LEVELS = tuple(levels for size in (4, 3, 2, 1, 0) for levels in combinations((2, 4, 8, 16), size))
"""Sets of coarse levels: those of the 31 members of the published ensemble."""


def suggest(ask: Ask, *, demo: bool = False) -> None:
    """Ask for the core's learning rate and channels, and for levels and fusion of the readout.

    Args:
        ask: answers by dotted name.
        demo: cap what makes a run slow, so that two cores train one in seconds.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, A.2.1, "Parameter Search" (learning rate and channels);
        released code (levels and fusion).
    """
    ask.choice("optimizer.core_lr", (1e-4, 5e-4, 1e-3, 2e-3, 5e-3))
    ask.choice("model.channels", (32, 64) if demo else (32, 64, 128, 160, 224))
    levels = ask.choice("model.levels", LEVELS)
    if levels != "()":
        # A plain readout has nothing to fuse.
        ask.choice("model.fusion", ("mean", "adaptive"))


def suggest_demo(ask: Ask) -> None:
    """Ask within the demo's caps."""
    suggest(ask, demo=True)
