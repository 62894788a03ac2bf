"""Clips per second and memory of the loader, beside a plain one that np.loads the raw arrays of each clip.

    python benchmarks/clip_loading.py                            # 4 GB in a temporary folder, two minutes
    python benchmarks/clip_loading.py --neurons 500 --trials 8   # a quick look

CPU time is that of the whole process with one thread, so other load on the machine hardly matters.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from data.clips import ClipBatch
from data.conversion import ConversionConfig, convert
from data.folds import select_trials
from data.loading import ClipLoader
from data.normalization import BASELINE, Normalization
from data.raw_format import RawWriter
from data.recording import Tier, open_store
from data.sampling import LoaderConfig
from data.store import VARIABLES

SESSION = "dynamic1-1-1-Video-0"
VALID_FRAMES, PADDED_FRAMES, FRAME_SHAPE = 300, 324, (36, 64)
NUM_PROCESSES = 4

Epoch = Callable[[int], int]
"""Reads one epoch (its number seeds it) and returns how many clips it had."""

ReadClip = Callable[[list[np.ndarray], np.ndarray, int, np.random.Generator], list[torch.Tensor]]
"""Cuts a clip out of a trial's raw arrays, given the responses' precision and the frames of a clip."""


def main() -> None:
    """Make the data, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=int, default=8000)
    parser.add_argument("--trials", type=int, default=72)
    parser.add_argument("--frames", type=int, default=80, help="frames of a clip")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many counts")
    parser.add_argument("--to", type=Path, help="where the temporary folder is made")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="clip-loading-", dir=args.to) as name:
        write_data(Path(name), args.neurons, args.trials)
        compare(Path(name), args)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Measure all loaders and print the table."""
    stores = {dtype: folder / f"store-{dtype}" for dtype in ("float32", "float16")}
    epochs = {
        f"{label}, raw {dtype}": raw_epoch(folder / dtype, args, read)
        for label, read in (("starter kit's steps", starter_kit_clip), ("plain np.load", plain_clip))
        for dtype in ("float64", "float32")
    }
    epochs |= {f"Striate, {dtype} store": store_epoch(store, args) for dtype, store in stores.items()}
    epochs["Striate, float16 store, made float32"] = store_epoch(stores["float16"], args, then=to_float32)
    normalization = Normalization.fit(open_store(stores["float16"])[0], BASELINE)
    epochs["Striate, float16 store, normalized"] = store_epoch(stores["float16"], args, then=normalization)
    cost = {label: [cpu_ms(epoch) for _ in range(args.repeats)] for label, epoch in epochs.items()}
    best = {label: min(values) for label, values in cost.items()}
    table = Table(title=f"{args.frames} frames of {args.neurons:,} neurons, {args.trials} trials, page cache")
    table.add_column("loader")
    for column in ("CPU ms/clip", "median", "clips/s per core", "x kit f64", "x plain f64", "x plain f32"):
        table.add_column(column, justify="right")
    references = (
        "starter kit's steps, raw float64",
        "plain np.load, raw float64",
        "plain np.load, raw float32",
    )
    for label, ms in best.items():
        ratios = [f"{best[reference] / ms:.1f}" for reference in references]
        table.add_row(label, f"{ms:.3f}", f"{np.median(cost[label]):.3f}", f"{1000 / ms:,.0f}", *ratios)
    console = Console(width=120)
    console.print(table)
    for dtype, store in stores.items():
        before, after = shared_memory_mb(store, args)
        console.print(
            f"{NUM_PROCESSES} processes that read the {dtype} store: {after:,.0f} MB together (sum of PSS), "
            f"{before:,.0f} MB of it before they read; the store is {size_mb(store):,.0f} MB"
        )


def cpu_ms(epoch: Epoch) -> float:
    """Return milliseconds of CPU per clip of an epoch, after one that warms up."""
    epoch(0)
    start = time.process_time()
    clips = epoch(1)
    return 1000 * (time.process_time() - start) / clips


def raw_epoch(folder: Path, args: argparse.Namespace, read: ReadClip) -> Epoch:
    """Return an epoch over a raw folder: every trial once."""
    recording = folder / SESSION
    std = np.load(recording / "meta" / "statistics" / "responses" / "all" / "std.npy")
    precision = 1 / np.maximum(std, 0.01 * np.nanmean(std))

    def epoch(number: int) -> int:
        rng = np.random.default_rng(number)
        for trial in rng.permutation(args.trials):
            arrays = [np.load(recording / "data" / name / f"{trial}.npy") for name in VARIABLES]
            assert len(read(arrays, precision, args.frames, rng)) == len(VARIABLES)
        return int(args.trials)

    return epoch


def plain_clip(
    arrays: list[np.ndarray], _precision: np.ndarray, frames: int, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Cut a clip with as little work as there can be once all four files have been read."""
    valid = int((~np.isnan(arrays[0][0, 0])).sum())
    start = rng.integers(valid - frames + 1)
    return [torch.from_numpy(a[..., start : start + frames].astype(np.float32)) for a in arrays]


def starter_kit_clip(
    arrays: list[np.ndarray], precision: np.ndarray, frames: int, rng: np.random.Generator
) -> list[torch.Tensor]:
    """Cut a clip with the steps of the competition's starter kit, without its cache of whole trials.

    It looks for the first NaN in all arrays, copies the valid frames, normalizes whole trials, selects
    neurons by an index, spreads behavior over the image, and cuts the clip last.
    """
    valid = min(int(np.argwhere(np.isnan(a))[:, -1].min(initial=a.shape[-1])) for a in arrays)
    video, responses, behavior, pupil = (np.take(a, np.arange(valid), axis=-1) for a in arrays)
    responses = responses * precision[:, :valid]
    video, behavior, pupil = ((a - a.mean()) / a.std() for a in (video, behavior, pupil))
    responses = responses[np.arange(len(responses))]
    planes = np.broadcast_to(behavior[:, None, None], (2, *video.shape))
    video = np.concatenate([video[None], planes])
    start = rng.integers(valid - frames + 1)
    clip = (a[..., start : start + frames] for a in (video, responses, behavior, pupil))
    return [torch.from_numpy(a.astype(np.float32)) for a in clip]


def to_float32(clips: ClipBatch) -> torch.Tensor:
    """Convert the responses, as a device would after the copy."""
    assert clips.responses is not None
    return clips.responses.float()


def store_epoch(store: Path, args: argparse.Namespace, *, then: Callable[[ClipBatch], object] = len) -> Epoch:
    """Return an epoch of the loader, reading on the calling thread and doing ``then`` to each batch."""
    recordings = open_store(store)
    config = LoaderConfig(
        clip_frames=args.frames, batch_size=args.batch_size, clips_per_session=max(args.trials, 400)
    )
    trials = select_trials(recordings, [Tier.TRAIN])
    loader = ClipLoader(recordings, trials, config, seed=0, threads=0)

    def epoch(number: int) -> int:
        clips = 0
        for (batch,) in loader.epoch(number):
            then(batch)
            clips += len(batch)
        return clips

    return epoch


def shared_memory_mb(store: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Return the memory of processes that read all of a store, before and after; shared pages count once."""
    context = get_context("spawn")
    barrier = context.Barrier(NUM_PROCESSES)
    with ProcessPoolExecutor(
        NUM_PROCESSES, mp_context=context, initializer=keep_barrier, initargs=(barrier,)
    ) as pool:
        weights = list(pool.map(weigh_reader, [store] * NUM_PROCESSES, [args] * NUM_PROCESSES))
    before, after = (sum(column) / 1024 for column in zip(*weights, strict=True))
    return before, after


def keep_barrier(barrier: Barrier) -> None:
    """Keep, in a new process, what makes all of them wait for each other."""
    weigh_reader.barrier = barrier  # type: ignore[attr-defined]


def weigh_reader(store: Path, args: argparse.Namespace) -> tuple[int, int]:
    """Return this process's share of memory in kB before and after it reads, while the others live."""
    barrier: Barrier = weigh_reader.barrier  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    epoch = store_epoch(store, args)
    weights = []
    for numbers in ((), range(4)):
        for number in numbers:
            epoch(number)
        barrier.wait(timeout=300)
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        weights.append(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
        barrier.wait(timeout=300)
    return weights[0], weights[1]


def size_mb(folder: Path) -> float:
    """Return the size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.npy")) / 2**20


def write_data(folder: Path, num_neurons: int, num_trials: int) -> None:
    """Write one mouse as raw float64 and float32 folders, and convert it to float32 and float16 stores."""
    writers = [
        RawWriter(
            folder / dtype / SESSION,
            num_padded_frames=PADDED_FRAMES,
            dtype=np.dtype(dtype),
            unit_ids=np.arange(1, num_neurons + 1),
            coordinates_um=np.zeros((num_neurons, 3), dtype=np.int64),
        )
        for dtype in ("float64", "float32")
    ]
    for index in range(num_trials):
        rng = np.random.default_rng([0, index])
        # Silent most of the time, as the recordings are.
        responses = np.maximum(20 * rng.standard_exponential((num_neurons, VALID_FRAMES)) - 40, 1e-9)
        video = 255 * rng.random((VALID_FRAMES, *FRAME_SHAPE))
        behavior, pupil = rng.random((2, 2, VALID_FRAMES)) + 1
        for writer in writers:
            writer.write_trial(
                index, tier=Tier.TRAIN, video=video, behavior=behavior, pupil=pupil, responses=responses
            )
    for writer in writers:
        writer.finish()
    for dtype in ("float32", "float16"):
        config = ConversionConfig(responses=dtype)  # type: ignore[arg-type]
        convert([folder / "float32" / SESSION], folder / f"store-{dtype}", config)


if __name__ == "__main__":
    main()
