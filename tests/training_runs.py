"""Runs of seconds on the two tiny mice, for tests that train."""

import os
import shutil
import signal
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


KILLED_EPOCHS = 3


def main(store: str, folder: str, *points: str) -> None:
    """Start the same run once for each point, and kill it -9 there: ``folder/<point>`` is what is left.

    Points count optimizer steps and everything that changes a disk. The runs are forked, so that the
    libraries are imported once; nothing may have been computed before, because autograd's threads do not
    survive a fork.
    """
    torch.set_num_threads(1)
    recordings = open_store(Path(store))
    for point in points:
        child = os.fork()
        if child == 0:
            _run_until(int(point), recordings, Path(folder) / point)
        _, status = os.waitpid(child, 0)
        print(point, "killed" if os.WIFSIGNALED(status) else "ended", flush=True)


def _run_until(point, recordings, folder):
    passed = 0

    def counted(original):
        def call(*args, **kwargs):
            nonlocal passed
            passed += 1
            if passed == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    os.fsync = counted(os.fsync)
    shutil.rmtree = counted(shutil.rmtree)
    for name in ("rename", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    run(tiny_spec(epochs=KILLED_EPOCHS), recordings, folder, on_step=counted(lambda _: None))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
