"""Scoring, choosing and searching members from statistics, beside loading all predictions for every question.

    python benchmarks/evidence.py                                    # 9 GB in a temporary folder
    python benchmarks/evidence.py --neurons 1000 --members 8         # a quick look

One mouse, six videos of ten repeats, predictions as a build stores them (float16, trial by trial). The plain
way loads the members' predictions with numpy, averages, and correlates in float32, as released code does;
what would take hours is measured on some candidates and neurons and multiplied. CPU time counts all threads.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import TypeVar

# This folder is first on the path of a script, and its other scripts would be found in place of packages.
sys.path[0] = str(Path(__file__).resolve().parents[1])
# Threads that wait for each other would count as work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.simulated_pools import SESSION, TIER, SimulatedRecording, write_member  # noqa: E402
from ensembles.blending import BLENDS, ROUNDS, Blender, best_subset, greedy  # noqa: E402
from ensembles.clip_moments import ClipMoments  # noqa: E402
from ensembles.evidence import Evidence  # noqa: E402
from ensembles.evidence_pass import gather  # noqa: E402
from ensembles.gate import choose  # noqa: E402
from training.predictions import PredictionStore  # noqa: E402

Result = TypeVar("Result")
NUM_VIDEOS, FIRST, LAST = 6, 50, 300


def main() -> None:
    """Make the data, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=31)
    parser.add_argument("--neurons", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=10, help="of each of the six videos")
    parser.add_argument("--threads", type=int, default=2, help="of the pass")
    parser.add_argument("--to", type=Path, help="where the temporary folder is made")
    parser.add_argument("--pass-only", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pass_only:
        print(json.dumps(time_pass(args.pass_only, args)))
        return
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="ensembles-", dir=args.to))
    try:
        write_predictions(folder, args)
        compare(folder, args)
    finally:
        shutil.rmtree(folder)


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Measure both ways and print the table."""
    console = Console(width=130)
    measured = json.loads(
        subprocess.run(
            [sys.executable, __file__, "--pass-only", str(folder), "--threads", str(args.threads),
             "--repeats", str(args.repeats)],
            check=True, capture_output=True, text=True,
        ).stdout
    )  # fmt: skip
    evidence = Evidence.open(folder / "evidence")
    moments = ClipMoments.load(evidence)
    pooled = moments.pool(range(NUM_VIDEOS))
    num_members = args.members
    uniform = np.full(num_members, 1 / num_members)
    plain, plain_score = cpu(lambda: plain_scores(folder, [range(num_members)], slice(None))[0])
    few = slice(0, min(500, args.neurons))
    num_tried = min(4 * num_members, 60)
    tried = [range(1, 1 + number % num_members) or [0] for number in range(num_tried)]
    plain_few = cpu(lambda: plain_scores_in_memory(folder, tried, few))[0] / num_tried
    per_candidate = plain_few * args.neurons / (few.stop - few.start)
    table = Table(
        title=f"{num_members} members, {args.neurons:,} neurons, {NUM_VIDEOS * args.repeats} trials; CPU s"
    )
    for column in ("question", "plain way", "from statistics", "ratio"):
        table.add_column(column, justify="left" if column == "question" else "right")

    def row(name: str, slow: float | None, fast: float, note: str = "") -> None:
        ratio = "-" if slow is None else f"{slow / fast:,.0f}"
        shown = "-" if slow is None else f"{slow:,.2f}{note}"
        table.add_row(name, shown, f"{fast:,.4f}", ratio)

    row("the pass over all predictions, both correlations", None, measured["cpu"])
    fast, exact = cpu(lambda: evidence.score(uniform).pooled)
    row("score of the mean of all, neuron by neuron, from files", plain, fast)
    row("score of one weighting, from memory", plain, cpu(lambda: pooled.score(uniform))[0])
    slow = per_candidate * ROUNDS * num_members
    fast = best_of(lambda: greedy(pooled, rounds=ROUNDS))
    row(f"greedy, {ROUNDS} rounds with replacement", slow, fast, " *")
    for size in (3, 4):
        fast, (_, count) = cpu(lambda size=size: best_subset(pooled, max_members=size))
        assert count == sum(comb(num_members, each) for each in range(1, size + 1))
        row(f"all {count:,} subsets of at most {size}", per_candidate * count, fast, " *")
    for name in ("simplex", "groups", "bagged"):
        groups = [f"architecture {number % 3}" for number in range(num_members)]
        blender = Blender(name, evidence, groups=groups)
        row(
            f"blend '{name}' ({BLENDS[name].summary})",
            None,
            cpu(lambda b=blender: b.fit(range(NUM_VIDEOS)))[0],
        )
    row("choose: broken members, simplex, gate", None, cpu(lambda: choose(evidence))[0])
    console.print(table)
    console.print(
        f"* multiplied from {num_tried} candidates on {few.stop} neurons held in memory "
        f"({per_candidate:.2f} CPU s for one candidate on all neurons)"
    )
    console.print(
        f"The pass, from the page cache: {measured['cpu']:.1f} CPU s, {measured['wall']:.1f} s on the clock "
        f"with {args.threads} threads, peak memory {measured['rss_mb']:,.0f} MB "
        f"(of it {measured['before_mb']:,.0f} MB before it began); "
        f"statistics are {measured['size_mb']:,.0f} MB, predictions {measured['read_mb']:,.0f} MB."
    )
    console.print(f"Load of the machine: {', '.join(f'{load:.0f}' for load in os.getloadavg())}.")
    console.print(
        f"Score of the mean: plain {plain_score:.8f}, from statistics {exact:.8f}, "
        f"difference {abs(plain_score - exact):.1e}."
    )


def time_pass(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Warm the page cache, gather, and return what it took; in a process of its own, for its memory."""
    store = PredictionStore(root=folder / "predictions")
    members = sorted(path.name for path in store.root.iterdir())
    read = 0
    for path in sorted(store.root.rglob("*.npy")):
        with path.open("rb") as file:
            while chunk := len(file.read(2**22)):
                read += chunk
    recording = simulated_recording(folder, args)
    before = peak_memory_mb()
    start, wall = time.process_time(), time.perf_counter()
    gather(store, members, [recording], tier=TIER, folder=folder / "evidence", threads=args.threads)
    return {
        "cpu": time.process_time() - start,
        "wall": time.perf_counter() - wall,
        "before_mb": before,
        "rss_mb": peak_memory_mb(),
        "size_mb": sum(path.stat().st_size for path in (folder / "evidence").rglob("*.npy")) / 2**20,
        "read_mb": read / 2**20,
    }


def peak_memory_mb() -> float:
    """Return the peak memory of this program; getrusage would count the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def cpu(work: Callable[[], Result]) -> tuple[float, Result]:
    """Return the CPU seconds of some work, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def best_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the least CPU seconds of several times."""
    return min(cpu(work)[0] for _ in range(repeats))


def plain_scores(folder: Path, subsets: list[range], neurons: slice) -> list[float]:
    """Load, average and correlate as released ensemble code does, one trial at a time."""
    responses = np.load(folder / "responses.npy", mmap_mode="r")
    paths = sorted((folder / "predictions").glob(f"*/{SESSION}/{TIER}.npy"))
    scores = []
    for subset in subsets:
        members = [np.load(paths[member], mmap_mode="r") for member in subset]
        parts, recorded = [], []
        for trial in range(len(responses)):
            loaded = [member[trial, neurons, FIRST:LAST].astype(np.float32) for member in members]
            parts.append(np.mean(loaded, axis=0))
            recorded.append(responses[trial, FIRST:LAST, neurons].T.astype(np.float32))
        scores.append(correlation(np.concatenate(parts, axis=1), np.concatenate(recorded, axis=1)))
    return scores


def plain_scores_in_memory(folder: Path, subsets: list[range], neurons: slice) -> list[float]:
    """The same for candidates of a search that keeps the predictions of a few neurons in memory."""
    responses = np.load(folder / "responses.npy", mmap_mode="r")[:, FIRST:LAST, neurons]
    recorded = np.concatenate([trial.T.astype(np.float32) for trial in responses], axis=1)
    paths = sorted((folder / "predictions").glob(f"*/{SESSION}/{TIER}.npy"))
    loaded = np.stack(
        [
            np.concatenate(list(np.load(p, mmap_mode="r")[:, neurons, FIRST:LAST].astype(np.float32)), axis=1)
            for p in paths
        ]
    )
    return [correlation(loaded[list(subset)].mean(axis=0), recorded) for subset in subsets]


def correlation(predicted: np.ndarray, responses: np.ndarray) -> float:
    """Correlate over frames and average over neurons, as the competition's code does in float32."""
    p = predicted - predicted.mean(axis=1, keepdims=True)
    r = responses - responses.mean(axis=1, keepdims=True)
    p /= p.std(axis=1, keepdims=True) + 1e-8
    r /= r.std(axis=1, keepdims=True) + 1e-8
    return float((p * r).mean(axis=1).mean())


def write_predictions(folder: Path, args: argparse.Namespace) -> None:
    """Write responses and predictions: signals of videos, noise, and errors that members share in part."""
    num_trials = NUM_VIDEOS * args.repeats
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(args.neurons, LAST, generator=generator)

    signals = [draw() for _ in range(NUM_VIDEOS)]
    responses = np.lib.format.open_memmap(
        folder / "responses.npy", mode="w+", dtype=np.float16, shape=(num_trials, LAST, args.neurons)
    )
    for trial in range(num_trials):
        responses[trial] = (signals[trial // args.repeats] + draw(3.0)).half().numpy().T
    responses.flush()
    shared = [draw(0.8) for _ in range(NUM_VIDEOS)]
    for member in range(args.members):
        error = [signal + common + draw(0.5) for signal, common in zip(signals, shared, strict=True)]
        write_member_of(folder, f"member-{member:02d}", error, draw, args)


def write_member_of(
    folder: Path,
    member: str,
    videos: list[torch.Tensor],
    draw: Callable[[float], torch.Tensor],
    args: argparse.Namespace,
) -> None:
    """Write one member; repeats differ a little, as behavior does."""
    behavior = draw(0.3)
    trials = (
        (videos[trial // args.repeats] + torch.roll(behavior, 7 * trial, dims=1)).half().numpy()
        for trial in range(NUM_VIDEOS * args.repeats)
    )
    store = PredictionStore(root=folder / "predictions")
    write_member(store, simulated_recording(folder, args), member, trials)


def simulated_recording(folder: Path, args: argparse.Namespace) -> SimulatedRecording:
    """Return the recording, its responses mapped."""
    return SimulatedRecording(np.load(folder / "responses.npy", mmap_mode="r"), args.repeats)


if __name__ == "__main__":
    main()
