"""Runs of seconds on the two tiny mice, for tests that train."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from data.folds import SplitConfig
from data.normalization import BASELINE
from data.recording import open_store
from data.sampling import LoaderConfig
from models.cores.factorized import FactorizedConfig
from models.cores.vivit import ViViTConfig
from training.losses import VIVIT_LOSS
from training.optimization import OptimizerConfig
from training.run import run
from training.spec import RunSpec

MODELS = {
    "factorized": FactorizedConfig(
        channels=(4, 6),
        input_spatial_kernel=5,
        hidden_spatial_kernel=3,
        input_temporal_kernel=5,
        hidden_temporal_kernel=3,
        position_sigma=0.1,
    ),
    "vivit": ViViTConfig(
        embedding_dim=8,
        spatial_depth=1,
        temporal_depth=1,
        spatial_patch_size=4,
        spatial_patch_stride=4,
        temporal_patch_size=4,
        num_heads=2,
        head_dim=4,
        ff_dim=8,
        max_frames=80,
        patch_dropout=0.0,
        attention_dropout=0.0,
        ff_dropout=0.0,
        drop_path=0.0,
    ),
}


def tiny_spec(family="vivit", **changes) -> RunSpec:
    spec = RunSpec(
        model=MODELS[family],
        loader=LoaderConfig(clip_frames=20, batch_size=3),
        split=SplitConfig(num_folds=4),
        normalization=BASELINE,
        optimizer=OptimizerConfig(core_lr=0.003),
        epochs=3,
        seed=5,
    )
    if family == "vivit":
        spec = replace(spec, loss=VIVIT_LOSS)
    return replace(spec, **changes)


def main(store: str, folder: str) -> None:
    """Train in a process of its own, one line for each epoch: something to kill."""
    torch.set_num_threads(1)

    def on_epoch(report) -> bool:
        print(report.epoch, flush=True)
        return True

    run(tiny_spec(epochs=6), open_store(Path(store)), Path(folder), on_epoch=on_epoch)


if __name__ == "__main__":
    main(*sys.argv[1:])
