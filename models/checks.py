"""Refuse settings that cannot work: field, value, rule."""

import math
from collections.abc import Collection
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def require(condition: bool, field: str, value: object, rule: str) -> None:
    """Raise a ``ValueError`` in the project's wording unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{field} is {value!r}, but must be {rule}")


def require_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    require(value in choices, field, value, f"one of {', '.join(choices)}")


def require_counts(config: object, *fields: str) -> None:
    """Raise unless each of the fields is at least 1."""
    for field in fields:
        value = getattr(config, field)
        require(value >= 1, field, value, "at least 1")


def require_rates(config: object, *fields: str) -> None:
    """Raise unless each of the fields is a probability below 1."""
    for field in fields:
        value = getattr(config, field)
        require(0 <= value < 1, field, value, "at least 0 and less than 1")


def check_types(config: object) -> None:
    """Raise unless every field of a configuration is of the type it is declared with.

    A configuration begins with this, so that its rules can compare: text for a number or a list for a tuple
    would end in an error of Python's, or only where a layer is built. Whole numbers do for numbers, but
    neither booleans nor what is not finite.
    """
    for field, hint in get_type_hints(type(config)).items():
        value = getattr(config, field)
        require(_fits(value, hint), field, value, _describe(hint))


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is Ellipsis:
            return all(_fits(entry, kinds[0]) for entry in value)
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint is bool or isinstance(value, bool):
        return hint is bool and isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral)
    if hint is float:
        return isinstance(value, Real) and math.isfinite(value)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if get_origin(hint) is UnionType:
        return " or ".join(map(_describe, get_args(hint)))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        count = "entries" if kinds[-1] is Ellipsis else f"{len(kinds)} entries"
        return f"a tuple of {count}, each {_describe(kinds[0])}"
    names = {
        bool: "True or False",
        int: "a whole number",
        float: "a finite number",
        str: "text",
        NoneType: "None",
    }
    return names.get(hint, f"of type {getattr(hint, '__name__', hint)}")
