import pytest
import torch

from models.encoder import SessionSpec
from models.registry import make_model

NEW = (7863, 7908, 8202, 7939, 8122)
OLD = (7440, 7928, 8285, 7671, 7495)
READOUTS = {
    "factorized": [
        *(1_045_931, 1_051_916, 1_091_018, 1_056_039, 1_080_378),
        *(989_672, 1_054_576, 1_102_057, 1_020_395, 996_987),
    ],
    "gru": [
        *(542_699, 545_804, 566_090, 547_943, 560_570),
        *(513_512, 547_184, 571_817, 529_451, 517_307),
    ],
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def published(family, neurons):
    specs = [
        SessionSpec(
            session=f"mouse{index}",
            num_neurons=num_neurons,
            coordinates_um=torch.zeros(num_neurons, 3),
            mean_response=torch.zeros(num_neurons),
        )
        for index, num_neurons in enumerate(neurons)
    ]
    # Only shapes matter here, so no memory is filled.
    with torch.device("meta"):
        return make_model(family).build(specs, (36, 64))


@pytest.mark.parametrize(
    ("family", "core", "layers", "five", "ten"),
    [
        ("factorized", 382_176, [23_008, 71_936, 287_232], 5_707_743, 10_871_715),
        ("gru", 44_152 + 1_991_040, [1_096, 14_352, 14_352, 14_352], 4_798_583, 7_478_139),
    ],
)
def test_every_part_has_as_many_parameters_as_published(family, core, layers, five, ten):
    encoder = published(family, NEW + OLD)
    assert count(encoder.core) == core
    assert [count(layer) for layer in encoder.core.layers] == layers
    assert [count(encoder.readouts[session]) for session in encoder.sessions] == READOUTS[family]
    assert {count(encoder.shifters[session]) for session in encoder.sessions} == {57}
    assert count(encoder) == ten
    assert count(published(family, NEW)) == five


def test_the_recurrent_part_of_the_gru_has_six_convolutions():
    assert count(published("gru", NEW[:1]).core.gru) == 6 * (64 * 64 * 9 * 9 + 64)
