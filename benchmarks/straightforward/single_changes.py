"""The single changes: each function returns the work without and with one of them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.straightforward import STRAIGHTFORWARD
from benchmarks.straightforward.dwiseneuro import PlainDwiseNeuro
from benchmarks.straightforward.shared import sample
from benchmarks.straightforward.v1fm import PlainV1FM
from benchmarks.straightforward.vivit import PlainViViT
from benchmarks.straightforward.work import (
    FRAME_SHAPE,
    NUM_NEURONS,
    Work,
    as_tuple,
    make_clip,
    make_encoder,
    with_gradients,
    without_gradients,
)
from models.conv_gru import _recurrence as direct_recurrence
from models.pointwise import pointwise, pointwise_batch_norm
from models.sampling import sample_and_dot
from training.distillation import _targets as targets_of


def positions_once() -> tuple[Work, Work]:
    positions = make_encoder("factorized").readouts["mouse0"].positions

    def three_times() -> Tensor:
        means = [positions.network(positions.coordinates) for _ in range(3)]
        return means[-1]

    return without_gradients(three_times), without_gradients(positions.mean)


def readout() -> tuple[Work, Work]:
    features, positions = torch.randn(1, 112, 116, 15, 29), 2 * torch.rand(116, NUM_NEURONS, 2) - 1
    weights = torch.randn(112, NUM_NEURONS)

    def copies(features: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        return (sample(features, positions) * weights).sum(dim=1)

    def dots(features: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
        return sample_and_dot(features[0].transpose(0, 1), positions, weights)

    inputs = (features, positions, weights)
    return with_gradients(copies, *inputs), with_gradients(dots, *inputs)


def regularizer_once() -> tuple[Work, Work]:
    core = make_encoder("gru", training=True).core

    def three_times() -> Tensor:
        for _ in range(2):
            for layer in core.layers:
                layer.kernels()
        return core.regularizer()

    return without_gradients(three_times), without_gradients(core.regularizer)


def recurrence(*, fourier: bool) -> tuple[Work, Work]:
    encoder = make_encoder("gru")
    gru, plain = encoder.core.gru, STRAIGHTFORWARD["gru"](encoder)
    maps, weights = torch.randn(1, 64, 20, 28, 56), tuple(gru.parameters())

    def of_weights(function: Callable[[Tensor], Tensor]) -> Work:
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
        return of_weights(joined), of_weights(gru)
    return of_weights(separate), of_weights(joined)


def factorized(*, training: bool) -> tuple[Work, Work]:
    encoder = make_encoder("factorized", training=training)
    core, plain = encoder.core, STRAIGHTFORWARD["factorized"](encoder)
    clip = make_clip(1, 80)
    if training:
        video, *signals = clip
        return (
            with_gradients(lambda video: plain.features(video, *signals), video),
            with_gradients(lambda video: core(video, *signals), video),
        )
    return without_gradients(lambda: plain.features(*clip)), without_gradients(lambda: core(*clip))


def tokenizer() -> tuple[Work, Work]:
    encoder = make_encoder("vivit")
    plain, tokenizer = PlainViViT(encoder).eval(), encoder.core.tokenizer
    planes, weights = torch.randn(1, 4, 140), tuple(tokenizer.parameters())
    video = torch.randn(1, 1, 140, *FRAME_SHAPE)

    def gradients(tokens: Tensor) -> tuple[Tensor, ...]:
        return tokens.detach(), *torch.autograd.grad(tokens[..., :56].square().mean(), weights)

    def matrix() -> tuple[Tensor, ...]:
        constant = planes[..., None, None].expand(-1, -1, -1, *FRAME_SHAPE)
        return gradients(plain._tokens(torch.cat([video, constant], dim=1)))

    return matrix, lambda: gradients(tokenizer(video, planes))


def behavior_code() -> tuple[Work, Work]:
    sampled, code = torch.randn(116, 112, NUM_NEURONS), torch.randn(116, 112)
    weights = torch.randn(112, NUM_NEURONS)
    seen = (sampled * weights).sum(dim=1)

    def added(code: Tensor, weights: Tensor) -> Tensor:
        return ((sampled + code[:, :, None]) * weights).sum(dim=1)

    # What the neurons see is computed anyway: only the product with the code comes on top.
    def apart(code: Tensor, weights: Tensor) -> Tensor:
        return seen + code @ weights

    return (
        without_gradients(lambda: added(code, weights)),
        without_gradients(lambda: apart(code, weights)),
    )


def one_sampling() -> tuple[Work, Work]:
    encoder = make_encoder("v1fm")
    readout, plain = encoder.readouts["mouse0"], PlainV1FM(encoder)
    features, signals = torch.randn(1, 224, 15, 18, 32), torch.randn(1, 2, 15)
    shift = torch.zeros(1, 15, 2)

    def joined(features: Tensor) -> Tensor:
        return readout(features, behavior=signals, pupil=signals, shift=shift)

    def separate(features: Tensor) -> Tensor:
        return plain.read(readout, features, signals, signals, shift)

    return with_gradients(separate, features), with_gradients(joined, features)


def refine_first() -> tuple[Work, Work]:
    level = make_encoder("v1fm").readouts["mouse0"].levels[0]
    read = torch.randn(15, level.weights.shape[1])

    def spread_first(read: Tensor) -> Tensor:
        return level.refine(read[:, level.members, None])[..., 0]

    return with_gradients(spread_first, read), with_gradients(level, read)


def unused_levels() -> tuple[Work, Work]:
    readout = make_encoder("v1fm").readouts["mouse0"]
    frames, positions = torch.randn(15, 224, 18, 32), 2 * torch.rand(15, NUM_NEURONS, 2) - 1

    def all_levels(frames: Tensor) -> Tensor:
        return readout._read(frames, positions)[0]

    def finest(frames: Tensor) -> Tensor:
        return sample_and_dot(frames, positions, readout.weights)

    return with_gradients(all_levels, frames), with_gradients(finest, frames)


def masks_kept() -> tuple[Work, Work]:
    encoder = make_encoder("v1fm")
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

    return without_gradients(rebuilt), without_gradients(kept)


def biases_in_training() -> tuple[Work, Work]:
    encoder = make_encoder("v1fm", training=True)
    core, plain = encoder.core, PlainV1FM(encoder)
    padded = torch.Size((16, 21, 35))
    attentions = [block.attention for block in core.blocks]

    def back(biases: list[Tensor]) -> None:
        torch.autograd.backward(biases, [torch.ones_like(bias) for bias in biases])

    # No two numbers to compare: the one bias is for whole windows, the others are for what is in them.
    def one_for_all_windows() -> Tensor:
        for attention in attentions:
            plain._mask(padded, [4, 3, 3])
            back([plain._bias(attention)])
        return torch.ones(1)

    def one_for_each_group() -> Tensor:
        for attention in attentions:
            back(attention._biases(core.layout))
        return torch.ones(1)

    return one_for_all_windows, one_for_each_group


def one_readout() -> tuple[Work, Work]:
    encoder = make_encoder("dwiseneuro", num_sessions=10)
    features, signals = torch.randn(2, 4096, 16, 1, 1), torch.randn(2, 2, 16)

    def read(features: Tensor, session: str) -> Tensor:
        return encoder.readouts[session](features, behavior=signals, pupil=signals, shift=None)

    def all_sessions(features: Tensor) -> Tensor:
        return torch.stack([read(features, session) for session in encoder.sessions])[0]

    return with_gradients(all_sessions, features), with_gradients(lambda f: read(f, "mouse0"), features)


def distillation_targets() -> tuple[Work, Work]:
    num_clips, sessions = 32, [f"mouse{index}" for index in range(10)]
    own = torch.arange(num_clips)[:, None] % len(sessions) == torch.arange(len(sessions))
    taught = {session: torch.rand(num_clips, NUM_NEURONS, 16) for session in sessions}
    # As the loader of the released code hands them out: zeros where a mouse was not recorded.
    padded = {
        session: torch.rand(num_clips, NUM_NEURONS, 16) * own[:, column, None, None]
        for column, session in enumerate(sessions)
    }
    recorded = {session: padded[session][own[:, column]] for column, session in enumerate(sessions)}

    def pair_by_pair() -> Tensor:
        for clip in range(num_clips):
            for column, session in enumerate(sessions):
                if not own[clip, column]:
                    padded[session][clip] = taught[session][clip]
        return padded["mouse9"]

    def masked() -> Tensor:
        columns = enumerate(sessions)
        return [targets_of(session, taught, recorded, own[:, column]) for column, session in columns][-1]

    return without_gradients(pair_by_pair), without_gradients(masked)


def depthwise() -> tuple[Work, Work]:
    encoder = make_encoder("dwiseneuro", training=True)
    block, plain = encoder.core.blocks[1], PlainDwiseNeuro(encoder)
    features = torch.randn(2, 64, 16, 32, 32)
    last = features.movedim(1, -1).contiguous()
    without = with_gradients(lambda x: plain._block(block, x), features)
    with_it = with_gradients(block, last)

    def moved() -> tuple[Tensor, ...]:
        return tuple(result.movedim(-1, 1) for result in as_tuple(with_it()))

    block.drop_path.rate = 0.0
    return without, moved


def expansion_norm() -> tuple[Work, Work]:
    block = make_encoder("dwiseneuro", training=True).core.blocks[1]
    features, weight = torch.randn(2, 16, 32, 32, 64), block.expand.weight.flatten(1)

    def two_passes(features: Tensor) -> Tensor:
        product = pointwise(features, weight)
        return block.expand_norm(product.flatten(0, 3)).view_as(product)

    def in_the_product(features: Tensor) -> Tensor:
        return pointwise_batch_norm(features, weight, block.expand_norm)

    return with_gradients(two_passes, features), with_gradients(in_the_product, features)
