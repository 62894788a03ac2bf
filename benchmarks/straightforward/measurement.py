"""Time and memory of one model in a process of its own, so that the peak is the model's.

``benchmarks/models.py`` asks for measurements; ``python -m benchmarks.straightforward.measurement REQUEST``
makes them, one for every line of its input, and prints them as JSON.
"""

import json
import resource
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
from models.cost import build_without_storage, trace
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
        threads: threads of torch.
    """

    family: str
    task: str
    plain: bool
    num_clips: int
    num_neurons: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One go at a task.

    Attributes:
        wall_seconds: on the clock.
        cpu_seconds: of all threads together.
        matmul_rate: GFLOP that a product of two 2048 x 2048 matrices does per CPU second, just before.
    """

    wall_seconds: float
    cpu_seconds: float
    matmul_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both implementations on the same input.

    Attributes:
        gflop: of the straightforward forward pass, as torch counts them.
        deviation: largest difference of the outputs, in standard deviations of the output.
        traced_gib: peak memory of our training step, by counting tensors instead of pages.
        plain_traced_gib: that of the straightforward one.
    """

    gflop: float
    deviation: float
    traced_gib: float
    plain_traced_gib: float


class Worker:
    """A process of its own that does a task whenever it is asked to; it has done it once when it is ready.

    Attributes:
        first: what it said when it was ready: the comparison, where that is the task.

    Two of them, asked in turn, see the same load of the machine, and each one's peak of memory is its own.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        command = [
            sys.executable,
            "-m",
            "benchmarks.straightforward.measurement",
            json.dumps(asdict(request)),
        ]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._answer()

    def step(self) -> Step:
        """Do the task once more."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Step(**self._answer())

    def finish(self) -> float:
        """End the process; return the most GiB it ever held, with interpreter, libraries and optimizer."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = self._answer()["peak_gib"]
        self._process.wait()
        return peak

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"measuring {self._request.family} ({self._request.task}) ended with {self._process.wait()}, "
                "probably for want of memory: choose a smaller --batch"
            )
        answer: dict[str, float] = json.loads(line)
        return answer


def ask(request: Request) -> dict[str, float]:
    """Compare in a fresh process."""
    return Worker(request).first


def serve(request: Request) -> None:
    """Do the task once, then once for every line of input; at its end, tell the peak of memory."""
    encoder = _build(request)
    model = STRAIGHTFORWARD[request.family](encoder) if request.plain else encoder
    clip, responses = _data(request, encoder)
    task = _training_step(model, clip, responses) if request.task == "train" else _prediction(model, clip)
    task()
    _tell({})
    for _ in sys.stdin:
        rate = matmul_rate()
        wall, cpu = time.perf_counter(), time.process_time()
        task()
        step = Step(
            wall_seconds=time.perf_counter() - wall,
            cpu_seconds=time.process_time() - cpu,
            matmul_rate=rate,
        )
        _tell(asdict(step))
    _tell({"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE})


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
    traced, plain_traced = (_traced_gib(request, plain=plain) for plain in (False, True))
    return Comparison(
        gflop=counter.get_total_flops() / 1e9,
        deviation=deviation.item(),
        traced_gib=traced,
        plain_traced_gib=plain_traced,
    )


def _traced_gib(request: Request, *, plain: bool) -> float:
    shape = (request.num_clips, PUBLISHED_FRAMES[request.family], *FRAME_SHAPE)
    encoder = build_without_storage(
        make_model(request.family), {SESSION: request.num_neurons}, (shape[2], shape[3])
    )
    model = STRAIGHTFORWARD[request.family](encoder) if plain else encoder
    return trace(model.train(), shape, session=SESSION).peak_bytes / GIBIBYTE


def matmul_rate(size: int = 2048) -> float:
    """Return GFLOP per CPU second of a square matrix product, the best of three."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
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


def _tell(answer: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asked = Request(**json.loads(sys.argv[1]))
    if asked.task == "compare":
        _tell(asdict(compare(asked)))
    else:
        serve(asked)
