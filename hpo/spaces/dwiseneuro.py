"""The DwiseNeuro space: what its author says to have tuned, in ranges around the published values."""

from hpo.space import Ask


def suggest(ask: Ask, *, demo: bool = False) -> None:
    """Ask for nonlinearity, dropout, stochastic depth, width, batch size and learning rate.

    The paper names what was tuned and no ranges. The released config scales the learning rate with the batch
    size; here both vary, and its rule is one line through the space.

    Args:
        ask: answers by dotted name.
        demo: cap what makes a run slow, so that two cores train one in seconds.

    Source:
        Turishcheva et al. 2024, arXiv:2407.09100, A.1; README of lRomul/sensorium.
    """
    ask.number("model.softplus_beta", 0.01, 2.0, log=True)
    ask.number("model.readout_dropout", 0.0, 0.6)
    ask.number("model.drop_path", 0.0, 0.5)
    ask.number("optimizer.core_lr", 1e-4, 1e-2, log=True)
    ask.whole("loader.batch_size", 4, 16 if demo else 64, log=True)
    ask.whole("model.expansion", 1, 8)
    ask.multiple("model.channels", (0.5, 1.0) if demo else (0.5, 0.75, 1.0, 1.5), step=4)


def suggest_demo(ask: Ask) -> None:
    """Ask within the demo's caps."""
    suggest(ask, demo=True)
