"""Time and memory of one model in a process of its own, so that the peak is the model's.

``benchmarks/models.py`` asks for measurements; ``python -m benchmarks.straightforward.measurement REQUEST``
makes one and prints it as JSON.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.straightforward import STRAIGHTFORWARD
from models.encoder import Encoder, SessionSpec
from models.registry import make_model

PUBLISHED_FRAMES = {"dwiseneuro": 16, "factorized": 80, "gru": 80, "v1fm": 30, "vivit": 140}
FRAME_SHAPE = (36, 64)
SESSION = "mouse"
GIBIBYTE = 2**30
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        family: name of the model.
        task: "train" (a step), "eval" (a forward pass) or "compare" (outputs and FLOPs of both).
        plain: measure the straightforward implementation.
        num_clips: clips of a batch.
        num_neurons: neurons of the one session.
        repeats: how often, after one time that does not count.
        threads: threads of torch.
    """

    family: str
    task: str
    plain: bool
    num_clips: int
    num_neurons: int
    repeats: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Medians of one request.

    Attributes:
        wall_seconds: on the clock.
        cpu_seconds: of all threads together.
        peak_gib: most memory the process ever held, with interpreter, libraries and optimizer state.
        matmul_gflops: rate of a matrix product of 2048 x 2048, before and after.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_gib: float
    matmul_gflops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both implementations on the same input.

    Attributes:
        gflop: of the straightforward forward pass, as torch counts them.
        deviation: largest difference of the outputs, in standard deviations of the output.
    """

    gflop: float
    deviation: float


def ask(request: Request) -> dict[str, float]:
    """Measure in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.straightforward.measurement", json.dumps(asdict(request))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip() or "killed, probably for want of memory: choose a smaller --batch"
        raise RuntimeError(
            f"measuring {request.family} ({request.task}) ended with {done.returncode}: {reason}"
        )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(request: Request) -> Measurement:
    """Measure here."""
    rates = [matmul_gflops()]
    encoder = _build(request)
    model = STRAIGHTFORWARD[request.family](encoder) if request.plain else encoder
    clip, responses = _data(request, encoder)
    task = _training_step(model, clip, responses) if request.task == "train" else _prediction(model, clip)
    task()
    walls, cpus = [], []
    for _ in range(request.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        task()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rates.append(matmul_gflops())
    return Measurement(
        wall_seconds=statistics.median(walls),
        cpu_seconds=statistics.median(cpus),
        peak_gib=peak / GIBIBYTE,
        matmul_gflops=statistics.median(rates),
    )


def compare(request: Request) -> Comparison:
    """Run both implementations once."""
    encoder = _build(request).eval()
    clip, _ = _data(request, encoder)
    with torch.no_grad():
        ours = encoder(*clip, session=SESSION)
        # The counter knows no fused attention.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            plain = STRAIGHTFORWARD[request.family](encoder).eval()(*clip, session=SESSION)
    deviation = (ours - plain).abs().max() / plain.std()
    return Comparison(gflop=counter.get_total_flops() / 1e9, deviation=deviation.item())


def matmul_gflops(size: int = 2048) -> float:
    """Return the rate of a square matrix product, the best of five."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def _build(request: Request) -> Encoder:
    torch.set_num_threads(request.threads)
    torch.manual_seed(0)
    spec = SessionSpec(
        session=SESSION,
        num_neurons=request.num_neurons,
        coordinates_um=torch.randn(request.num_neurons, 3),
        mean_response=torch.rand(request.num_neurons),
    )
    return make_model(request.family).build([spec], FRAME_SHAPE)


def _data(request: Request, encoder: Encoder) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    frames = PUBLISHED_FRAMES[request.family]
    clip = (
        torch.randn(request.num_clips, 1, frames, *FRAME_SHAPE),
        torch.randn(request.num_clips, 2, frames),
        torch.randn(request.num_clips, 2, frames),
    )
    return clip, torch.rand(request.num_clips, request.num_neurons, frames - encoder.warmup_frames)


def _training_step(model: nn.Module, clip: tuple[Tensor, ...], responses: Tensor) -> Callable[[], None]:
    """Forward, Poisson loss and regularizer, backward and AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        predicted = model(*clip, session=SESSION)
        loss = (predicted - responses * torch.log(predicted + 1e-8)).sum() + model.regularizer()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _prediction(model: nn.Module, clip: tuple[Tensor, ...]) -> Callable[[], None]:
    model.eval()

    def predict() -> None:
        with torch.no_grad():
            model(*clip, session=SESSION)

    return predict


def _answer(request: Request) -> None:
    result = compare(request) if request.task == "compare" else measure(request)
    sys.stdout.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    _answer(Request(**json.loads(sys.argv[1])))
