"""Search spaces, one file each, one line in the table; see ``docs/adding-spaces.md``."""

from collections.abc import Callable

from hpo.space import Ask
from hpo.spaces import dwiseneuro, factorized, gru, v1fm, vivit

SPACES: dict[str, dict[str, Callable[[Ask], None]]] = {
    "dwiseneuro": {"full": dwiseneuro.suggest, "demo": dwiseneuro.suggest_demo},
    "factorized": {"full": factorized.suggest, "demo": factorized.suggest_demo},
    "gru": {"full": gru.suggest, "demo": gru.suggest_demo},
    "v1fm": {"full": v1fm.suggest, "demo": v1fm.suggest_demo},
    "vivit": {"full": vivit.suggest, "demo": vivit.suggest_demo},
}
"""What each space asks for, by family and scale."""
