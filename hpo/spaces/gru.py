"""The GRU baseline's space: kernels, width, regularizers and optimizer around the published values."""

from hpo.space import Ask


def suggest(ask: Ask, *, demo: bool = False) -> None:
    """Ask for kernel sizes, channels, weights of the regularizers, learning rate and batch size.

    Source of the published values: Turishcheva et al. 2024, section 5 and table 5, and the starter kit; no
    search of them is published.

    Args:
        ask: answers by dotted name.
        demo: cap what makes a run slow, so that two cores train one in seconds.
    """
    ask.whole("model.input_kernel", 3, 11 if demo else 15, step=2)
    ask.whole("model.hidden_kernel", 3, 7 if demo else 9, step=2)
    ask.whole("model.gru_input_kernel", 3, 5 if demo else 11, step=2)
    ask.whole("model.gru_recurrent_kernel", 1, 5 if demo else 11, step=2)
    ask.whole("model.features", 2, 8 if demo else 16)
    ask.whole("model.gru_channels", 8, 32 if demo else 128, step=8)
    ask.number("model.smoothness", 1e-1, 1e5, log=True)
    ask.number("model.sparsity", 1e1, 1e7, log=True)
    ask.number("optimizer.core_lr", 5e-4, 5e-2, log=True)
    ask.whole("loader.batch_size", 2, 8 if demo else 32, log=True)


def suggest_demo(ask: Ask) -> None:
    """Ask within the demo's caps."""
    suggest(ask, demo=True)
