"""Dotted names: one per hyperparameter, the same in spaces, commands, MLflow and on disk."""

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
Scalar = bool | int | float | str | None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, and all of them when they are few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]}?" if close else ""
    listing = f", but must be one of {', '.join(names)}" if len(names) <= 40 else ", which is not known"
    return listing + guess


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return every leaf of nested dataclasses under its dotted name, in field order."""
    flat: dict[str, Any] = {}
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        name = prefix + field.name
        if is_dataclass(value):
            flat.update(flatten(value, name + "."))
        else:
            flat[name] = value
    return flat


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy with some leaves replaced; the copy is validated as a whole.

    Args:
        config: nested frozen dataclasses.
        values: dotted name to value; text is read by the type of its field.

    Raises:
        ValueError: a name does not exist (the nearest is suggested) or a value does not fit its field.
    """
    known = flatten(config)
    for name in values:
        if name not in known:
            raise ValueError(f"hyperparameter is {name!r}{nearest(name, known)}")
    return _replaced(config, values, prefix="")


def _replaced(config: Config, values: Mapping[str, Any], *, prefix: str) -> Config:
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for field in fields(config):  # type: ignore[arg-type]
        name = prefix + field.name
        if name in values:
            changes[field.name] = parse(values[name], hints[field.name], name=name)
        elif any(key.startswith(name + ".") for key in values):
            changes[field.name] = _replaced(getattr(config, field.name), values, prefix=name + ".")
    return replace(config, **changes) if changes else config  # type: ignore[type-var]


def parse(value: Any, hint: Any, *, name: str) -> Any:
    """Read a value for a field of type ``hint``.

    Args:
        value: text from a command line, or a plain value from JSON or a search space.
        hint: the field's annotation (bool, int, float, str, Literal, tuple, or a union of these).
        name: dotted name, for the error.

    Raises:
        ValueError: the value does not fit.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _parse_union(value, get_args(hint), name=name)
    if origin is Literal:
        choices = get_args(hint)
        for choice in choices:
            if value == choice or str(value) == str(choice):
                return choice
        raise ValueError(f"{name} is {value!r}{nearest(str(value), map(str, choices))}")
    if origin is tuple:
        return _parse_tuple(value, get_args(hint), name=name)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise ValueError(f"{name} is {value!r}{nearest(str(value), map(str, hint))}") from None
    if hint is bool:
        return _parse_bool(value, name=name)
    if hint in (int, float):
        return _parse_number(value, hint, name=name)
    if hint is type(None):
        if value is None or str(value).lower() in ("none", "null"):
            return None
        raise ValueError(f"{name} is {value!r}, but must be none")
    return str(value) if hint is str else value


def _parse_union(value: Any, hints: tuple[Any, ...], *, name: str) -> Any:
    # None first: the text "none" is also a valid str.
    for hint in sorted(hints, key=lambda hint: hint is not type(None)):
        try:
            return parse(value, hint, name=name)
        except ValueError:
            continue
    wanted = " or ".join(getattr(hint, "__name__", str(hint)) for hint in hints)
    raise ValueError(f"{name} is {value!r}, but must be {wanted}")


def _parse_tuple(value: Any, hints: tuple[Any, ...], *, name: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        text = value.strip("()[] ")
        value = [part.strip() for part in text.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} is {value!r}, but must be values joined by commas")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise ValueError(f"{name} has {len(value)} values, but must have {len(hints)}")
    return tuple(parse(part, hint, name=name) for part, hint in zip(value, hints, strict=True))


def _parse_bool(value: Any, *, name: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    text = str(value).lower()
    if text not in known:
        raise ValueError(f"{name} is {value!r}, but must be true or false")
    return known[text]


def _parse_number(value: Any, hint: type[int] | type[float], *, name: str) -> int | float:
    wanted = "a whole number" if hint is int else "a number"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, but must be {wanted}") from None
    if hint is int:
        if isinstance(value, bool) or not number.is_integer():
            raise ValueError(f"{name} is {value!r}, but must be {wanted}")
        return int(number)
    return number


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return one line ``name: old -> new`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            inner = f"{name}.{key}" if name else key
            lines += differences(old.get(key), new.get(key), inner)
        return lines
    return [] if old == new else [f"{name}: {_short(old)} -> {_short(new)}"]


def list_differences(old: Any, new: Any, *, shown: int = 4) -> str:
    """Return the first differences in one line and how many more there are; nothing where all is the same."""
    lines = differences(old, new)
    more = f" and {len(lines) - shown} more" if len(lines) > shown else ""
    return "; ".join(lines[:shown]) + more


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
