"""Search spaces, one file each, one line in the table."""

from collections.abc import Callable

from hpo.space import Ask
from hpo.spaces import vivit

SPACES: dict[str, dict[str, Callable[[Ask], None]]] = {
    "vivit": {"full": vivit.suggest, "demo": vivit.suggest_demo},
}
"""What each space asks for, by family and scale."""
