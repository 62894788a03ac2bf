"""The ViViT space: Table 3 of Turishcheva et al. 2024, arXiv:2407.09100."""

from hpo.space import Ask

ACTIVATIONS = ("tanh", "sigmoid", "elu", "gelu", "swiglu")
POSITION_ENCODINGS = ("none", "learnable", "sinusoidal")


def suggest(ask: Ask, *, demo: bool = False) -> None:
    """Ask for the 19 hyperparameters of Table 3, and for the readouts' own learning rate and weight decay.

    Table 3 gives one learning rate and one weight decay; the released code has another pair for readouts and
    shifters, and Table 4 ranks two learning rates, so both pairs vary. Learning rates are uniform, as the
    table says, not logarithmic. Strides are asked for within the patch size.

    Args:
        ask: answers by dotted name.
        demo: cap what makes a run slow, so that two cores train one in seconds.
    """
    _suggest_optimizer(ask, demo=demo)
    ask.whole("model.embedding_dim", 8, 64 if demo else 512, step=8)
    ask.number("model.patch_dropout", 0.0, 0.5)
    ask.number("model.drop_path", 0.0, 0.5)
    ask.choice("model.position_encoding", POSITION_ENCODINGS)
    ask.whole("model.spatial_depth", 1, 2 if demo else 8)
    patch = ask.whole("model.spatial_patch_size", 6 if demo else 3, 16)
    ask.whole("model.spatial_patch_stride", 4 if demo else 1, 16, limit=patch)
    ask.whole("model.temporal_depth", 1, 2 if demo else 8)
    frames = ask.whole("model.temporal_patch_size", 4 if demo else 1, 20 if demo else 50)
    ask.whole("model.temporal_patch_stride", 2 if demo else 1, 20 if demo else 50, limit=frames)
    ask.whole("model.num_heads", 1, 4 if demo else 16)
    ask.whole("model.head_dim", 8, 32 if demo else 512, step=8)
    ask.number("model.attention_dropout", 0.0, 0.5)
    ask.whole("model.ff_dim", 8, 64 if demo else 512, step=8)
    ask.choice("model.ff_activation", ACTIVATIONS)
    ask.number("model.ff_dropout", 0.0, 0.5)


def suggest_demo(ask: Ask) -> None:
    """Ask within the demo's caps."""
    suggest(ask, demo=True)


def _suggest_optimizer(ask: Ask, *, demo: bool) -> None:
    ask.whole("loader.batch_size", 1, 8 if demo else 64)
    for group in ("core", "readout"):
        ask.number(f"optimizer.{group}_lr", 1e-4, 1e-2)
        ask.number(f"optimizer.{group}_weight_decay", 0.0, 1.0)
