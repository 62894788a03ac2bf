"""Settings as they stand on a command line."""

from collections.abc import Sequence


def read_pairs(settings: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` settings.

    Raises:
        ValueError: one of them has no value.
    """
    pairs = {}
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator or not name:
            raise ValueError(f"--set is {setting!r}, but must be NAME=VALUE, such as optimizer.core_lr=0.002")
        pairs[name] = value
    return pairs
