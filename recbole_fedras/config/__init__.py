"""Configuration: keys merged and checked, typed settings, objects built from them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recbole_fedras.config.config import Config

__all__ = ["Config"]


def __getattr__(name: str) -> Any:
    """Import ``Config``, and RecBole with it, when it is asked for."""
    if name == "Config":
        from recbole_fedras.config.config import Config

        return Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
