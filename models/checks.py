"""Refuse settings that cannot work: field, value, rule."""

from collections.abc import Collection


def require(condition: bool, field: str, value: object, rule: str) -> None:
    """Raise a ``ValueError`` in the project's wording unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{field} is {value!r}, but must be {rule}")


def require_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    require(value in choices, field, value, f"one of {', '.join(choices)}")
