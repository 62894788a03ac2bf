"""One model by averaging parameters: only members that began alike, and only if that is not worse.

Members that began apart lie in different valleys of the loss, and their average scores less than any of them:
they are refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.array_files import write_bytes
from data.folds import Trials, select_trials
from data.normalization import Normalization
from data.recording import Recording, Tier
from ensembles.holdout import common_holdout
from ensembles.manifest import EnsembleManifest, ManifestError
from models.encoder import Encoder
from training.checkpoint import load_checkpoint, read_info, save_checkpoint
from training.encoders import TrainedEncoder, load_encoder
from training.material import Material
from training.predict import score_trials
from training.ranks import Ranks
from training.spec import from_plain

SOUP = "soup"
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Soup:
    """An average of parameters beside what it was made of, on clips that none of them was trained on.

    Attributes:
        members: what was averaged.
        score: of the average, single-trial correlation.
        scores: of each member.
        judged_on: holdout, or oracle where the members hold out no trial together.
        is_accepted: whether it is not worse than the best of them.
        checkpoint: the average, below the build's folder; None if it was not accepted.
    """

    members: tuple[str, ...]
    score: float
    scores: Mapping[str, float]
    judged_on: str
    is_accepted: bool
    checkpoint: str | None


def make_soup(root: Path, recordings: Sequence[Recording]) -> Soup:
    """Average the parameters of a build's members with a weight, and keep it if it is not worse.

    Args:
        root: folder of a finished build.
        recordings: the sessions it was built for.

    Raises:
        ManifestError: the members did not begin alike; all beginnings are named.
    """
    manifest = EnsembleManifest.read(root)
    _require_common_trunk(manifest)
    folders = {name: _folder(manifest, root, name) for name in manifest.used}
    specs = [from_plain(manifest.member(name).spec) for name in manifest.used]
    holdout = common_holdout(specs, recordings)
    judged_on = "holdout" if all(holdout.values()) else str(Tier.ORACLE)
    trials = holdout if judged_on == "holdout" else select_trials(recordings, [Tier.ORACLE])
    material = Material.prepare(recordings, specs[0], device=torch.device("cpu"))
    packed = [load_checkpoint(folder)[0] for folder in folders.values()]
    average = average_states([each["encoder"] for each in packed])
    soup = load_encoder(next(iter(folders.values())))
    soup.encoder.load_state_dict(average)
    renew_batch_norms(soup.encoder, material)
    scores = {
        name: _score(load_encoder(folder), recordings, trials, material.normalizations)
        for name, folder in folders.items()
    }
    score = _score(soup, recordings, trials, material.normalizations)
    is_accepted = score >= max(scores.values())
    checkpoint = root / SOUP / "encoder"
    if is_accepted:
        info = read_info(next(iter(folders.values())))
        described = replace(info, versions=dict(info.versions) | {"soup_of": ",".join(folders)})
        save_checkpoint(checkpoint, packed[0] | {"encoder": soup.encoder.state_dict()}, described)
    found = Soup(
        members=manifest.used,
        score=score,
        scores=scores,
        judged_on=judged_on,
        is_accepted=is_accepted,
        checkpoint=checkpoint.relative_to(root).as_posix() if is_accepted else None,
    )
    (root / SOUP).mkdir(exist_ok=True)
    content: dict[str, Any] = {name: getattr(found, name) for name in Soup.__slots__}
    write_bytes(root / SOUP / "soup.json", (json.dumps(content, indent=1) + "\n").encode())
    return found


def _require_common_trunk(manifest: EnsembleManifest) -> None:
    beginnings: dict[str, list[str]] = {}
    for name in manifest.used:
        beginnings.setdefault(manifest.member(name).trunk_sha256[:8], []).append(name)
    if len(beginnings) > 1:
        shown = "; ".join(f"{trunk}: {', '.join(names[:4])}" for trunk, names in beginnings.items())
        raise ManifestError(
            f"members began with {len(beginnings)} different parameters ({shown}), but a soup needs one "
            "beginning (same model and seed): their average is worse than any of them"
        )


def average_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of parameters, in float64; whole numbers are those of the first."""
    average = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            average[name] = first.clone()
            continue
        total = torch.stack([state[name].double() for state in states]).mean(dim=0)
        average[name] = total.to(first.dtype)
    return average


def renew_batch_norms(encoder: Encoder, material: Material) -> int:
    """Measure the statistics of batch norms again, over one epoch of training clips.

    Averaged parameters have other activations than any of the members.

    Returns:
        How many batch norms there are; without any nothing is computed.
    """
    norms = [module for module in encoder.modules() if isinstance(module, _NORMS)]
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # A plain mean over batches.
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for clips in material.loader(Ranks()).epoch(0):
            for batch in material.prepare_batches(clips, seed=(0,)):
                encoder(batch.video, batch.behavior, batch.pupil, session=batch.session)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    encoder.eval()
    return len(norms)


def _folder(manifest: EnsembleManifest, root: Path, name: str) -> Path:
    checkpoint = manifest.member(name).checkpoint
    assert checkpoint is not None
    return checkpoint.verify(root).parent


def _score(
    trained: TrainedEncoder,
    recordings: Sequence[Recording],
    trials: Trials,
    normalizations: Mapping[str, Normalization],
) -> float:
    return score_trials(
        trained.encoder,
        recordings,
        trials,
        normalizations=normalizations,
        inference=trained.spec.inference,
        compute=trained.spec.compute,
    ).single_trial
