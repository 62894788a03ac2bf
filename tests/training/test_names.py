from dataclasses import dataclass, field
from typing import Literal

import pytest

from training.names import flatten, list_differences, with_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    depth: int = 3
    rate: float = 0.1
    mode: Literal["mean", "adaptive"] = "mean"
    levels: tuple[int, ...] = (2, 4)
    limit: int | None = None
    on: bool = False

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}, but must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    model: Inner = field(default_factory=Inner)
    seed: int = 0


def test_every_leaf_has_one_dotted_name():
    assert flatten(Outer()) == {
        "model.depth": 3,
        "model.rate": 0.1,
        "model.mode": "mean",
        "model.levels": (2, 4),
        "model.limit": None,
        "model.on": False,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.depth", "5", 5),
        ("model.rate", "1e-3", 0.001),
        ("model.mode", "adaptive", "adaptive"),
        ("model.levels", "2,8,16", (2, 8, 16)),
        ("model.levels", "", ()),
        ("model.limit", "7", 7),
        ("model.limit", "none", None),
        ("model.on", "true", True),
        ("seed", "42", 42),
    ],
)
def test_text_is_read_by_the_type_of_its_field(name, text, value):
    assert flatten(with_values(Outer(), {name: text}))[name] == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.dept", "5", "did you mean model.depth"),
        ("model.depth", "5.5", "model.depth is '5.5', but must be a whole number"),
        ("model.depth", "0", "depth is 0, but must be at least 1"),
        ("model.mode", "adaptve", "did you mean adaptive"),
        ("model.on", "maybe", "must be true or false"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(name, text, message):
    with pytest.raises(ValueError, match=message):
        with_values(Outer(), {name: text})


def test_flattening_and_setting_back_is_the_identity():
    changed = with_values(Outer(), {"model.levels": "3", "seed": 9, "model.rate": 0.5})
    assert with_values(Outer(), flatten(changed)) == changed


def test_differences_are_listed_by_name_the_first_of_them_only():
    old = {"seed": 0, "model": {"depth": 3, "rate": 0.5}, "only": 1}
    assert list_differences(old, dict(old)) == ""
    assert list_differences(old, old | {"seed": 1}) == "seed: 0 -> 1"
    new = {"seed": 1, "model": {"depth": 4, "rate": 0.5}}
    assert list_differences(old, new) == "model.depth: 3 -> 4; only: 1 -> nothing; seed: 0 -> 1"
    assert list_differences(old, new, shown=1) == "model.depth: 3 -> 4 and 2 more"
