"""Heads of a shared core, cut out of its checkpoint: each becomes an encoder like any other."""

from dataclasses import replace
from pathlib import Path

from models.heads import head_state
from training.checkpoint import CheckpointError, load_checkpoint, read_info, save_checkpoint
from training.spec import RunSpec, from_plain, to_plain


def extract_head(trunk: Path, spec: RunSpec, to: Path) -> Path:
    """Write the core and one head of a checkpoint as a checkpoint of its own, unless it is there.

    Args:
        trunk: checkpoint of an encoder with several heads.
        spec: the run that the head alone is; its model is one of the heads' models.
        to: folder of the checkpoint.

    Raises:
        CheckpointError: the encoder has no such head.
    """
    info = read_info(trunk)
    if (to / "checkpoint.json").is_file() and read_info(to).versions.get("trunk_sha256") == info.sha256:
        return to
    model = from_plain(info.spec).model
    heads = getattr(model, "heads", ())
    models = [model.head(index) for index in range(len(heads))]  # type: ignore[attr-defined]
    if spec.model not in models:
        raise CheckpointError(f"{trunk} has heads {', '.join(heads) or 'nowhere'}, but none that is wanted")
    packed, _ = load_checkpoint(trunk)
    packed = packed | {"encoder": head_state(packed["encoder"], models.index(spec.model))}
    described = replace(
        info,
        spec=to_plain(spec),
        versions=dict(info.versions) | {"trunk_sha256": info.sha256},
        # What is known is the score of the mean of all heads.
        score=None,
    )
    save_checkpoint(to, packed, described)
    return to
