"""The model families. A new one is one module and one line here; see ``docs/adding.md``."""

from difflib import get_close_matches

from models.cores.dwiseneuro import DwiseNeuroConfig
from models.cores.factorized import FactorizedConfig
from models.cores.gru import GRUConfig
from models.cores.v1fm import V1FMConfig
from models.cores.vivit import ViViTConfig
from models.encoder import ModelConfig

MODELS: dict[str, type[ModelConfig]] = {
    "dwiseneuro": DwiseNeuroConfig,
    "factorized": FactorizedConfig,
    "gru": GRUConfig,
    "v1fm": V1FMConfig,
    "vivit": ViViTConfig,
}
"""Configuration of each family; its defaults are the published settings."""


def make_model(name: str) -> ModelConfig:
    """Return the published configuration of a family.

    Raises:
        ValueError: there is no family of this name.
    """
    if name in MODELS:
        return MODELS[name]()
    nearest = get_close_matches(name, MODELS, n=1)
    guess = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"model is {name!r}, but must be one of {', '.join(MODELS)}{guess}")
