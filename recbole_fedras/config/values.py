"""Reads one key's value of a kind; errors name key, value and what is allowed."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NoReturn, Protocol

import numpy as np

from recbole_fedras.config import registry
from recbole_fedras.config.forms import like
from recbole_fedras.errors import ConfigError


class Keys(Protocol):
    """What holds keys and values."""

    def __getitem__(self, key: str, /) -> Any:
        """Return the value of a key."""


def refuse(config: Keys, key: str, allowed: str) -> NoReturn:
    """Raise the ConfigError that a key's value calls for."""
    raise ConfigError(f"{key}={config[key]!r} is not allowed; it must be {allowed}")


def number(
    config: Keys,
    key: str,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return a finite number within bounds."""
    value = config[key]
    bounds = [
        (above, ">", operator.gt),
        (at_least, ">=", operator.ge),
        (below, "<", operator.lt),
        (at_most, "<=", operator.le),
    ]
    used = [(bound, sign, test) for bound, sign, test in bounds if bound is not None]
    if not is_number(value) or not all(test(value, b) for b, _, test in used):
        what = " and ".join(f"{sign} {bound}" for bound, sign, _ in used)
        refuse(config, key, f"a number {what}")
    return float(value)


def integer(config: Keys, key: str, at_least: int, at_most: int = 2**62) -> int:
    """Return an integer within bounds."""
    value = like(config[key], at_least)
    if type(value) is not int or not at_least <= value <= at_most:
        refuse(config, key, f"an integer from {at_least} to {at_most}")
    return int(value)


def boolean(config: Keys, key: str) -> bool:
    """Return True or False."""
    if type(config[key]) is not bool:
        refuse(config, key, "True or False")
    return bool(config[key])


def string(config: Keys, key: str) -> str:
    """Return a string."""
    if not isinstance(config[key], str):
        refuse(config, key, "a string")
    return str(config[key])


def choice(config: Keys, key: str, choices: Iterable[str]) -> str:
    """Return one of the values allowed."""
    if config[key] not in choices:
        refuse(config, key, f"one of {', '.join(choices)}")
    return str(config[key])


def strings(config: Keys, key: str, allowed: str) -> list[str]:
    """Return a list of strings, at least one."""
    value = config[key]
    if not (
        isinstance(value, list | tuple)
        and value
        and all(isinstance(entry, str) for entry in value)
    ):
        refuse(config, key, allowed)
    return list(value)


def check_names(config: Keys, key: str, allowed: set[str]) -> None:
    """Refuse a dict with other names than those allowed."""
    for name in set(config[key]) - allowed:
        near = registry.nearest(str(name), sorted(allowed))
        refuse(config, key, f"without {name!r}; {near}allowed: {sorted(allowed)}")


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float."""
    return type(value) in (int, float) and bool(np.isfinite(value))
