"""What single changes of the mathematics give: each with and without, in turn, at published sizes.

The sizes are those of one clip (DwiseNeuro: two; the GRU: twenty frames) and 7,863 neurons. Each pair
computes the same numbers, which is checked before anything is measured.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.straightforward import STRAIGHTFORWARD
from benchmarks.straightforward.dwiseneuro import PlainDwiseNeuro
from benchmarks.straightforward.shared import sample
from benchmarks.straightforward.v1fm import PlainV1FM
from benchmarks.straightforward.vivit import PlainViViT
from models.conv_gru import _recurrence as direct_recurrence
from models.encoder import Encoder, SessionSpec
from models.pointwise import pointwise, pointwise_batch_norm
from models.registry import make_model
from models.sampling import sample_and_dot

Work = Callable[[], Tensor | tuple[Tensor, ...]]

NUM_NEURONS = 7863
FRAME_SHAPE = (36, 64)
LARGEST_DIFFERENCE = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Opportunity:
    """One change.

    Attributes:
        name: its number in the list the models were written from.
        family: the model it is measured in.
        what: what is done instead of what.
        make: builds the work without and with it; work that asks for gradients returns them.
    """

    name: str
    family: str
    what: str
    make: Callable[[], tuple[Work, Work]]


def compare(opportunity: Opportunity, *, repeats: int, threads: int) -> tuple[float, float, float]:
    """Return CPU milliseconds without and with the change, and the median ratio of neighbors.

    Raises:
        ValueError: the two do not compute the same.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    without, with_it = opportunity.make()
    for a, b in zip(_as_tuple(without()), _as_tuple(with_it()), strict=True):
        difference = ((a - b).abs().max() / a.abs().max()).item()
        if not difference <= LARGEST_DIFFERENCE:
            raise ValueError(
                f"{opportunity.name} ({opportunity.what}) differs by {difference:.1e} of the largest number, "
                f"but must differ by at most {LARGEST_DIFFERENCE}"
            )
    times = [(_cpu_ms(without), _cpu_ms(with_it)) for _ in range(repeats)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return medians[0], medians[1], statistics.median(a / b for a, b in times)


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _cpu_ms(work: Work) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def _encoder(family: str, *, num_sessions: int = 1, training: bool = False) -> Encoder:
    specs = [
        SessionSpec(
            session=f"mouse{index}",
            num_neurons=NUM_NEURONS,
            coordinates_um=torch.randn(NUM_NEURONS, 3),
            mean_response=torch.rand(NUM_NEURONS),
        )
        for index in range(num_sessions)
    ]
    return make_model(family).build(specs, FRAME_SHAPE).train(training)


def _clip(num_clips: int, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(num_clips, 1, num_frames, *FRAME_SHAPE),
        torch.randn(num_clips, 2, num_frames),
        torch.randn(num_clips, 2, num_frames),
    )


def _with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> Work:
    """Return work that computes, and goes back to the inputs.

    The mean of squares would not do as a loss: after a batch norm it is a constant.
    """
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def work() -> tuple[Tensor, ...]:
        result = function(*leaves)
        return result.detach(), *torch.autograd.grad(result.sin().mean(), leaves)

    return work


def _without_gradients(function: Callable[[], Tensor]) -> Work:
    def work() -> Tensor:
        with torch.no_grad():
            return function()

    return work


def _positions_once() -> tuple[Work, Work]:
    positions = _encoder("factorized").readouts["mouse0"].positions

    def three_times() -> Tensor:
        means = [positions.network(positions.coordinates) for _ in range(3)]
        return means[-1]

    return _without_gradients(three_times), _without_gradients(positions.mean)


def _readout() -> tuple[Work, Work]:
    features, positions = torch.randn(1, 112, 116, 15, 29), 2 * torch.rand(116, NUM_NEURONS, 2) - 1
    weights = torch.randn(112, NUM_NEURONS)

    def copies(features: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        return (sample(features, positions) * weights).sum(dim=1)

    def dots(features: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        return sample_and_dot(features[0].transpose(0, 1), positions, weights)

    inputs = (features, positions, weights)
    return _with_gradients(copies, *inputs), _with_gradients(dots, *inputs)


def _regularizer_once() -> tuple[Work, Work]:
    core = _encoder("gru", training=True).core

    def three_times() -> Tensor:
        for _ in range(2):
            for layer in core.layers:
                layer.kernels()
        return core.regularizer()

    return _without_gradients(three_times), _without_gradients(core.regularizer)


def _recurrence(*, fourier: bool) -> tuple[Work, Work]:
    encoder = _encoder("gru")
    gru, plain = encoder.core.gru, STRAIGHTFORWARD["gru"](encoder)
    maps, weights = torch.randn(1, 64, 20, 28, 56), tuple(gru.parameters())

    def with_gradients(function: Callable[[Tensor], Tensor]) -> Work:
        def work() -> tuple[Tensor, ...]:
            states = function(maps)
            return states.detach(), *torch.autograd.grad(states.square().mean(), weights)

        return work

    def separate(maps: Tensor) -> Tensor:
        return plain._recurrence(maps.transpose(1, 2))

    def joined(maps: Tensor) -> Tensor:
        gates = functional.conv2d(maps[0].transpose(0, 1), gru.input.weight, gru._biases(), padding=4)
        recurrent = (gru.update_and_reset.weight, gru.candidate.weight)
        return direct_recurrence(gates[:, None], *recurrent).permute(1, 2, 0, 3, 4)

    if fourier:
        return with_gradients(joined), with_gradients(gru)
    return with_gradients(separate), with_gradients(joined)


def _factorized(*, training: bool) -> tuple[Work, Work]:
    encoder = _encoder("factorized", training=training)
    core, plain = encoder.core, STRAIGHTFORWARD["factorized"](encoder)
    clip = _clip(1, 80)
    if training:
        video, *signals = clip
        return (
            _with_gradients(lambda video: plain.features(video, *signals), video),
            _with_gradients(lambda video: core(video, *signals), video),
        )
    return _without_gradients(lambda: plain.features(*clip)), _without_gradients(lambda: core(*clip))


def _tokenizer() -> tuple[Work, Work]:
    encoder = _encoder("vivit")
    plain, tokenizer = PlainViViT(encoder).eval(), encoder.core.tokenizer
    planes, weights = torch.randn(1, 4, 140), tuple(tokenizer.parameters())
    video = torch.randn(1, 1, 140, *FRAME_SHAPE)

    def gradients(tokens: Tensor) -> tuple[Tensor, ...]:
        return tokens.detach(), *torch.autograd.grad(tokens[..., :56].square().mean(), weights)

    def matrix() -> tuple[Tensor, ...]:
        constant = planes[..., None, None].expand(-1, -1, -1, *FRAME_SHAPE)
        return gradients(plain._tokens(torch.cat([video, constant], dim=1)))

    return matrix, lambda: gradients(tokenizer(video, planes))


def _behavior_code() -> tuple[Work, Work]:
    sampled, code = torch.randn(116, 112, NUM_NEURONS), torch.randn(116, 112)
    weights = torch.randn(112, NUM_NEURONS)
    seen = (sampled * weights).sum(dim=1)

    def added(code: Tensor, weights: Tensor) -> Tensor:
        return ((sampled + code[:, :, None]) * weights).sum(dim=1)

    # What the neurons see is computed anyway: only the product with the code comes on top.
    def apart(code: Tensor, weights: Tensor) -> Tensor:
        return seen + code @ weights

    return (
        _without_gradients(lambda: added(code, weights)),
        _without_gradients(lambda: apart(code, weights)),
    )


def _one_sampling() -> tuple[Work, Work]:
    encoder = _encoder("v1fm")
    readout, plain = encoder.readouts["mouse0"], PlainV1FM(encoder)
    features, signals = torch.randn(1, 224, 15, 18, 32), torch.randn(1, 2, 15)
    shift = torch.zeros(1, 15, 2)

    def joined(features: Tensor) -> Tensor:
        return readout(features, behavior=signals, pupil=signals, shift=shift)

    def separate(features: Tensor) -> Tensor:
        return plain.read(readout, features, signals, signals, shift)

    return _with_gradients(separate, features), _with_gradients(joined, features)


def _refine_first() -> tuple[Work, Work]:
    level = _encoder("v1fm").readouts["mouse0"].levels[0]
    read = torch.randn(15, level.weights.shape[1])

    def spread_first(read: Tensor) -> Tensor:
        return level.refine(read[:, level.members, None])[..., 0]

    return _with_gradients(spread_first, read), _with_gradients(level, read)


def _unused_levels() -> tuple[Work, Work]:
    readout = _encoder("v1fm").readouts["mouse0"]
    frames, positions = torch.randn(15, 224, 18, 32), 2 * torch.rand(15, NUM_NEURONS, 2) - 1

    def all_levels(frames: Tensor) -> Tensor:
        return readout._read(frames, positions)[0]

    def finest(frames: Tensor) -> Tensor:
        return sample_and_dot(frames, positions, readout.weights)

    return _with_gradients(all_levels, frames), _with_gradients(finest, frames)


def _masks_kept() -> tuple[Work, Work]:
    encoder = _encoder("v1fm")
    core, plain = encoder.core, PlainV1FM(encoder)
    padded = torch.Size((16, 21, 35))
    attentions = [block.attention for block in core.blocks]

    def rebuilt() -> Tensor:
        for attention in attentions:
            plain._mask(padded, [4, 3, 3])
            plain._bias(attention)
        return torch.ones(1)

    def kept() -> Tensor:
        for attention in attentions:
            attention.cache.get((attention.position_bias,), partial(attention._biases, core.layout))
        return torch.ones(1)

    return _without_gradients(rebuilt), _without_gradients(kept)


def _one_readout() -> tuple[Work, Work]:
    encoder = _encoder("dwiseneuro", num_sessions=10)
    features, signals = torch.randn(2, 4096, 16, 1, 1), torch.randn(2, 2, 16)

    def read(features: Tensor, session: str) -> Tensor:
        return encoder.readouts[session](features, behavior=signals, pupil=signals, shift=None)

    def all_sessions(features: Tensor) -> Tensor:
        return torch.stack([read(features, session) for session in encoder.sessions])[0]

    return _with_gradients(all_sessions, features), _with_gradients(lambda f: read(f, "mouse0"), features)


def _depthwise() -> tuple[Work, Work]:
    encoder = _encoder("dwiseneuro", training=True)
    block, plain = encoder.core.blocks[1], PlainDwiseNeuro(encoder)
    features = torch.randn(2, 64, 16, 32, 32)
    last = features.movedim(1, -1).contiguous()
    without = _with_gradients(lambda x: plain._block(block, x), features)
    with_it = _with_gradients(block, last)

    def moved() -> tuple[Tensor, ...]:
        return tuple(result.movedim(-1, 1) for result in _as_tuple(with_it()))

    block.drop_path.rate = 0.0
    return without, moved


def _expansion_norm() -> tuple[Work, Work]:
    block = _encoder("dwiseneuro", training=True).core.blocks[1]
    features, weight = torch.randn(2, 16, 32, 32, 64), block.expand.weight.flatten(1)

    def two_passes(features: Tensor) -> Tensor:
        product = pointwise(features, weight)
        return block.expand_norm(product.flatten(0, 3)).view_as(product)

    def in_the_product(features: Tensor) -> Tensor:
        return pointwise_batch_norm(features, weight, block.expand_norm)

    return _with_gradients(two_passes, features), _with_gradients(in_the_product, features)


OPPORTUNITIES = tuple(
    Opportunity(name=name, family=family, what=what, make=make)
    for name, family, what, make in (
        ("P1", "factorized", "position net kept in evaluation, for three evaluations", _positions_once),
        ("P2", "vivit", "readout without a copy of the features per neuron", _readout),
        ("P3", "gru", "rotated kernels built once a step, for three times", _regularizer_once),
        ("P7", "gru", "three convolutions instead of six per frame", lambda: _recurrence(fourier=False)),
        ("P8", "gru", "9 x 9 kernels by Fourier transform, on top of P7", lambda: _recurrence(fourier=True)),
        ("P9", "factorized", "2D convolutions channels-last, training", lambda: _factorized(training=True)),
        ("P9", "factorized", "and norm in the kernels, evaluation", lambda: _factorized(training=False)),
        ("P10", "vivit", "tokens without the matrix of patches", _tokenizer),
        ("P11", "vivit", "behavior's code apart from the features", _behavior_code),
        ("P13", "v1fm", "one sampling for all levels (with P2 and P14)", _one_sampling),
        ("P14", "v1fm", "refine pseudo-neurons, then hand out", _refine_first),
        ("P15", "v1fm", "levels that are not in use not read", _unused_levels),
        ("P16", "v1fm", "masks and biases of attention kept, evaluation", _masks_kept),
        ("P19", "dwiseneuro", "one readout instead of all ten", _one_readout),
        ("P22", "dwiseneuro", "a block channels-last, depthwise in 2D", _depthwise),
        ("-", "dwiseneuro", "batch norm of the expansion in its product", _expansion_norm),
    )
)
"""Single changes, in the order of their numbers."""
