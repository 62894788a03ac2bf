"""The factorized baseline's space: kernels, width, regularizers and optimizer around the published values."""

from hpo.space import Ask


def suggest(ask: Ask, *, demo: bool = False) -> None:
    """Ask for kernel sizes, channels, weights of the regularizers, learning rate and batch size.

    Source of the published values: Turishcheva et al. 2024, table 5, and the starter kit; no search of them
    is published.

    Args:
        ask: answers by dotted name.
        demo: cap what makes a run slow, so that two cores train one in seconds.
    """
    ask.whole("model.input_spatial_kernel", 3, 11 if demo else 15, step=2)
    ask.whole("model.hidden_spatial_kernel", 3, 5 if demo else 9, step=2)
    ask.whole("model.input_temporal_kernel", 3, 21, step=2)
    ask.whole("model.hidden_temporal_kernel", 1, 7 if demo else 11, step=2)
    ask.multiple("model.channels", (0.5, 1.0) if demo else (0.5, 1.0, 1.5, 2.0))
    ask.number("model.spatial_smoothness", 1e-2, 1e3, log=True)
    ask.number("model.temporal_smoothness", 1e-5, 1.0, log=True)
    ask.number("optimizer.core_lr", 5e-4, 5e-2, log=True)
    ask.whole("loader.batch_size", 2, 16 if demo else 32, log=True)


def suggest_demo(ask: Ask) -> None:
    """Ask within the demo's caps."""
    suggest(ask, demo=True)
