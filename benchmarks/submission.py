"""Measure writing submission files at their real size: ``python benchmarks/submission.py``.

Predictions are simulated (rates with the spread of real ones); each way of writing runs in a process of its
own, and its peak memory is what the process had more than before. The starter kit's way (nested lists in a
data frame) is measured on few trials only: its memory grows with them.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# This folder has modules named like packages.
sys.path[0] = str(Path(__file__).resolve().parents[1])

NEURONS = (7863, 7908, 8202, 7939, 8122)
TRIALS = {"live_main": 289, "final_main": 292, "live_bonus": 313, "final_bonus": 624}
"""Neurons of the competition's five mice, and trials of its four files (measured on the data set)."""

FRAMES = 250


def predictions(trials: int):
    """Yield mouse, trial, predictions and unit ids; one trial is in memory at a time."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        mouse = trial * len(NEURONS) // trials
        neurons = NEURONS[mouse]
        yield (
            f"mouse-{mouse}",
            trial,
            rng.gamma(0.5, 1.0, (neurons, FRAMES)).astype(np.float32),
            np.arange(neurons),
        )


def write_streamed(path: Path, trials: int) -> None:
    from ensembles.submission import SubmissionWriter

    with SubmissionWriter(path) as writer:
        for row in predictions(trials):
            writer.write(*row)


def write_as_the_kit(path: Path, trials: int) -> None:
    import pandas as pd

    rows = [
        {"mouse": mouse, "trial_indices": trial, "prediction": predicted.tolist(), "neuron_ids": ids.tolist()}
        for mouse, trial, predicted, ids in predictions(trials)
    ]
    pd.DataFrame(rows).to_parquet(path, compression="brotli", engine="pyarrow", index=False)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(write, path: Path, trials: int, answers) -> None:
    import pandas  # noqa: F401 - imports are no part of what is compared
    import pyarrow.parquet  # noqa: F401

    import ensembles.submission  # noqa: F401

    before, started = peak_bytes(), time.process_time()
    try:
        write(path, trials)
        answers.put((time.process_time() - started, peak_bytes() - before, peak_bytes()))
    except BaseException as error:
        answers.put(error)
        raise


def run(write, trials: int) -> tuple[float, int, int, int]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.parquet.brotli"
        process = context.Process(target=measure, args=(write, path, trials, answers))
        process.start()
        answer = answers.get()
        process.join()
        if isinstance(answer, BaseException):
            raise answer
        seconds, grown, peak = answer
        return seconds, grown, peak, path.stat().st_size


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", choices=TRIALS, default="live_main")
    parser.add_argument("--trials", type=int, help="default: as many as the file has")
    parser.add_argument("--kit-trials", type=int, default=6)
    parsed = parser.parse_args(arguments)
    trials = parsed.trials or TRIALS[parsed.file]
    columns = ("trials", "CPU s", "CPU s/trial", "peak MB", "grown MB", "file MB")
    print(f"{'way':<14}" + "".join(f"{column:>13}" for column in columns))
    for name, write, count in (
        ("streamed", write_streamed, parsed.kit_trials),
        ("streamed", write_streamed, trials),
        ("starter kit", write_as_the_kit, parsed.kit_trials),
    ):
        seconds, grown, peak, size = run(write, count)
        numbers = (
            f"{count}",
            f"{seconds:.1f}",
            f"{seconds / count:.3f}",
            f"{peak / 1e6:.0f}",
            f"{grown / 1e6:.0f}",
            f"{size / 1e6:.0f}",
        )
        print(f"{name:<14}" + "".join(f"{number:>13}" for number in numbers), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
