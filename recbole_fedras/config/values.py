"""Reads a key's value; errors name key, value and what is allowed."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol, TypeVar

from recbole_fedras.config import registry
from recbole_fedras.config.forms import Form
from recbole_fedras.errors import ConfigError

Value = TypeVar("Value")


class Keys(Protocol):
    """What holds keys and values."""

    def __getitem__(self, key: str, /) -> Any:
        """Return the value of a key."""


def refuse(config: Keys, key: str, allowed: str) -> NoReturn:
    """Raise the ConfigError that a key's value calls for."""
    raise ConfigError(f"{key}={config[key]!r} is not allowed; it must be {allowed}")


def read(config: Keys, key: str, form: Form[Value]) -> Value:
    """Return a key's value in the form that it must have."""
    try:
        return form.read(config[key])
    except (ValueError, TypeError):
        refuse(config, key, form.allowed)


def check_names(config: Keys, key: str, allowed: set[str]) -> None:
    """Refuse a dict with other names than those allowed."""
    for name in set(config[key]) - allowed:
        near = registry.nearest(str(name), sorted(allowed))
        refuse(config, key, f"without {name!r}; {near}allowed: {sorted(allowed)}")
