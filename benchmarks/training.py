"""What a run costs beside its model: data, tracking and checkpoints; processes; memory of micro-batches.

    python benchmarks/training.py                                       # everything: about 15 minutes, 8 GB
    python benchmarks/training.py --parts overhead --families vivit     # one table, one family
    python benchmarks/training.py --parts overhead --scale full         # published models: slow on a CPU

The loop and the model alone take turns, epoch by epoch, in one process, so that other load on the machine
strikes both. The model alone computes the same steps on batches that wait in memory; the loop reads,
normalizes, computes, tracks in MLflow and writes checkpoints. Scoring is left out of both. CPU seconds count
all threads, those that read ahead and track included; they are the steadier figure.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

# This folder is first on the path of a script, and this file would be found in place of our package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.conversion import convert  # noqa: E402
from data.raw_format import RawWriter  # noqa: E402
from data.recording import Recording, Tier, open_store  # noqa: E402
from training.device import ComputeConfig  # noqa: E402
from training.material import Material  # noqa: E402
from training.names import with_values  # noqa: E402
from training.optimization import make_optimizer  # noqa: E402
from training.predict import score_trials  # noqa: E402
from training.ranks import Ranks  # noqa: E402
from training.recipes import Scale, recipe  # noqa: E402
from training.reporter import Reporter  # noqa: E402
from training.results import EpochReport  # noqa: E402
from training.run import run  # noqa: E402
from training.spec import RunSpec  # noqa: E402
from training.step import GradientConfig, accumulate_gradients  # noqa: E402
from training.tracking import Tracker, prepare_store  # noqa: E402

CPU = torch.device("cpu")
PARTS = ("overhead", "workers", "memory")


def main() -> None:
    """Make recordings, measure what is asked for, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--families", nargs="+", default=["factorized", "vivit", "v1fm", "dwiseneuro"])
    parser.add_argument("--scale", choices=("demo", "full"), default="demo")
    parser.add_argument("--neurons", type=int, default=2000, help="of each of the two mice")
    parser.add_argument("--trials", type=int, default=32, help="of each mouse; some are held out to score")
    parser.add_argument("--epochs", type=int, default=6, help="the first one only warms up")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="training-") as name:
        folder = Path(name)
        write_recordings(folder, args.neurons, args.trials)
        changes = dict(setting.split("=", 1) for setting in args.set)
        specs = {
            family: with_values(recipe(family, scale=args.scale), {"epochs": args.epochs, **changes})
            for family in args.families
        }
        if "overhead" in args.parts:
            console.print(overhead_table(specs, open_store(folder / "store"), folder))
        if "workers" in args.parts:
            console.print(workers_table(specs, folder))
        if "memory" in args.parts:
            console.print(memory_table(args.scale, folder))


def write_recordings(folder: Path, num_neurons: int, num_trials: int) -> None:
    """Write a store of two mice of noise, in the sizes of the data set."""
    mice = [folder / "raw" / f"dynamic{mouse}-1-1-Video-0" for mouse in (1, 2)]
    for mouse, path in enumerate(mice):
        rng = np.random.default_rng(mouse)
        writer = RawWriter(
            path,
            num_padded_frames=324,
            dtype=np.dtype(np.float32),
            unit_ids=np.arange(1, num_neurons + 1),
            coordinates_um=rng.integers(-400, 400, (num_neurons, 3)),
        )
        for index in range(num_trials):
            # Silent most of the time, as the recordings are.
            responses = np.maximum(20 * rng.standard_exponential((num_neurons, 300)) - 40, 1e-9)
            behavior, pupil = rng.random((2, 2, 300)) + 1
            writer.write_trial(
                index,
                tier=Tier.TRAIN,
                video=255 * rng.random((300, 36, 64)),
                behavior=behavior,
                pupil=pupil,
                responses=responses,
            )
        writer.finish()
    convert(mice, folder / "store")


# --- the loop beside the model alone


@dataclass
class Times:
    """Wall and CPU seconds of some epochs of one kind."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Time what happens inside."""
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.wall.append(time.monotonic() - wall)
        self.cpu.append(time.process_time() - cpu)

    def add(self, wall: float, cpu: float) -> None:
        """Take in an epoch timed elsewhere."""
        self.wall.append(wall)
        self.cpu.append(cpu)

    def median(self, of: str) -> float:
        """Return the median without the first epoch, which warms up."""
        return float(np.median(getattr(self, of)[1:]))


def overhead_table(specs: dict[str, RunSpec], recordings: Sequence[Recording], folder: Path) -> Table:
    """Compare an epoch of the loop with the same steps of the model alone."""
    neurons = len(recordings[0].neurons.ids)
    table = Table(title=f"The whole loop beside the model alone: two mice of {neurons:,} neurons")
    for column in (
        "model",
        "steps",
        "clips/s alone",
        "in the loop",
        "overhead: wall",
        "CPU",
        "CPU ms per step",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for family, spec in specs.items():
        loop, alone, steps, clips = compare_with_model(spec, recordings, folder / f"run-{family}")
        wall, cpu = (loop.median(of) / alone.median(of) - 1 for of in ("wall", "cpu"))
        print(f"{family}: {steps} steps, overhead wall {wall:+.1%}, CPU {cpu:+.1%}", flush=True)
        table.add_row(
            family,
            str(steps),
            f"{clips / alone.median('wall'):.1f}",
            f"{clips / loop.median('wall'):.1f}",
            f"{wall:+.1%}",
            f"{cpu:+.1%}",
            f"{1000 * (loop.median('cpu') - alone.median('cpu')) / steps:.1f}",
        )
    return table


def compare_with_model(
    spec: RunSpec, recordings: Sequence[Recording], folder: Path
) -> tuple[Times, Times, int, int]:
    """Train a run whose epochs take turns with the model alone; return both times, steps and clips."""
    material = Material.prepare(recordings, spec, device=CPU)
    model_epoch, score, steps, clips = model_alone(spec, material)
    loop, scoring, alone = Times(), Times(), Times()
    uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
    prepare_store(uri, experiment="benchmark")
    tracker = Tracker(folder, uri=uri, experiment="benchmark", run_id=folder.name)
    reporter = Reporter(tracker, folder)
    reporter.start(spec, tags={})
    started = [time.monotonic(), time.process_time()]

    def on_epoch(report: EpochReport) -> bool:
        reporter.epoch(report)
        while not tracker.spool.is_empty:
            time.sleep(0.001)
        passed = time.monotonic() - started[0], time.process_time() - started[1]
        with scoring.measured():
            score()
        loop.add(passed[0] - scoring.wall[-1], passed[1] - scoring.cpu[-1])
        with alone.measured():
            model_epoch()
        started[:] = time.monotonic(), time.process_time()
        return True

    result = run(spec, recordings, folder, on_epoch=on_epoch)
    reporter.finish(result)
    assert result.error is None, result.error
    return loop, alone, steps, clips


def model_alone(
    spec: RunSpec, material: Material
) -> tuple[Callable[[], None], Callable[[], object], int, int]:
    """Return an epoch without data, tracking and checkpoints, and the scoring of an epoch."""
    encoder = material.build_encoder()
    optimizer = make_optimizer(encoder, spec.optimizer)
    steps = [
        material.prepare_batches(clips, seed=(spec.seed, 0, step))
        for step, clips in enumerate(material.loader(Ranks()).epoch(0))
    ]
    config = GradientConfig(
        loss=spec.loss,
        compute=spec.compute,
        num_trials=material.num_trials,
        micro_batch=material.micro_batch,
        joint=spec.loader.order == "mixed",
    )

    def epoch() -> None:
        encoder.train()
        for step, batches in enumerate(steps):
            optimizer.zero_grad(set_to_none=True)
            accumulate_gradients(encoder, batches, config, seed=(spec.seed, 0, step))
            optimizer.step()

    def score() -> object:
        return score_trials(
            encoder.eval(),
            material.recordings,
            material.choosing,
            normalizations=material.normalizations,
            inference=spec.inference,
            compute=spec.compute,
            while_training=True,
        )

    return epoch, score, len(steps), sum(len(batch) for batches in steps for batch in batches)


# --- one and two processes


def workers_table(specs: dict[str, RunSpec], folder: Path) -> Table:
    """Compare one process of one and of two threads with two processes of one thread."""
    table = Table(title="Training clips/s of one run")
    for column in (
        "model",
        "1 process, 1 thread",
        "1 process, 2 threads",
        "2 processes, 1 thread",
        "ratio to 1",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for family, spec in specs.items():
        speeds = []
        for processes, threads in ((1, 1), (1, 2), (2, 1)):
            out = folder / f"workers-{family}-{processes}-{threads}"
            in_processes(train_some, processes, spec, folder / "store", out, threads)
            speeds.append(json.loads(out.with_suffix(".json").read_text()))
            print(f"{family}: {processes} x {threads}: {speeds[-1]:.1f} clips/s", flush=True)
        table.add_row(family, *(f"{speed:.1f}" for speed in speeds), f"{speeds[2] / speeds[0]:.2f}")
    return table


def train_some(ranks: Ranks, spec: RunSpec, store: Path, out: Path, threads: int) -> None:
    """Train and write down the median speed of the epochs after the first."""
    torch.set_num_threads(threads)
    speeds: list[float] = []
    result = run(
        spec,
        open_store(store),
        out,
        on_epoch=lambda report: speeds.append(report.clips_per_second) or True,
        ranks=ranks,
    )
    assert result.error is None, result.error
    if ranks.is_first:
        out.with_suffix(".json").write_text(json.dumps(float(np.median(speeds[1:]))))


# --- memory


def memory_table(scale: Scale, folder: Path) -> Table:
    """Compare the peak memory of a step of the factorized model in parts of several sizes."""
    table = Table(title=f"A step of 8 clips of one mouse, factorized model ({scale}), in parts")
    for column in ("at a time", "peak GiB", "of the step GiB", "CPU s"):
        table.add_column(column, justify="right")
    for micro_batch in (8, 4, 2, 1):
        out = folder / f"memory-{micro_batch}.json"
        in_processes(step_memory, 1, folder / "store", scale, micro_batch, out)
        peak, before, cpu = json.loads(out.read_text())
        table.add_row(str(micro_batch), f"{peak:.2f}", f"{peak - before:.2f}", f"{cpu:.1f}")
    return table


def step_memory(_: Ranks, store: Path, scale: Scale, micro_batch: int, out: Path) -> None:
    """Compute one step's gradient and write down peak memory (GiB), that before the step, and CPU seconds."""
    recordings = open_store(store)[:1]
    spec = with_values(recipe("factorized", scale=scale), {"loader.batch_size": 8})
    spec = replace(spec, compute=ComputeConfig(micro_batch=micro_batch))
    material = Material.prepare(recordings, spec, device=CPU)
    encoder = material.build_encoder().train()
    clips = next(iter(material.loader(Ranks()).epoch(0)))
    batches = material.prepare_batches(clips, seed=(0,))
    config = GradientConfig(
        loss=spec.loss, compute=spec.compute, num_trials=material.num_trials, micro_batch=micro_batch
    )
    before, cpu = peak_gib(), time.process_time()
    accumulate_gradients(encoder, batches, config, seed=(0,))
    out.write_text(json.dumps([peak_gib(), before, time.process_time() - cpu]))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# --- processes of their own


def in_processes(work: Callable[..., None], count: int, *arguments: object) -> None:
    """Run ``work(ranks, *arguments)`` in fresh processes that form one run."""
    mp.spawn(_join, args=(count, work, arguments), nprocs=count)


def _join(rank: int, count: int, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29547"}
    if count > 1:
        dist.init_process_group("gloo", rank=rank, world_size=count)
    work(Ranks.current(), *arguments)
    if count > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
