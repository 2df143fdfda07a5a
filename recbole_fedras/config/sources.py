"""What users write, read as Python values: YAML files and arguments."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

from recbole_fedras.errors import ConfigError

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML without its C library
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]


class SafeLoader(_SafeLoader):
    """YAML's safe loader, the compiled one where there is one."""


class Loader(SafeLoader):
    """YAML whose numbers may have an exponent without a point, as 1e-3."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_arguments(argv: Sequence[str]) -> dict[str, str]:
    """Read ``--key=value`` arguments.

    Raises
    ------
    ConfigError
        For one that reads otherwise, and for a key with two values.
    """
    values: dict[str, str] = {}
    for argument in argv:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not (argument.startswith("--") and key and equals):
            raise ConfigError(f"argument {argument!r} must read --key=value")
        if values.get(key, value) != value:
            raise ConfigError(f"argument --{key} stands twice with other values")
        values[key] = value
    return values


def literal(argument: str) -> Any:
    """Read an argument as a Python literal, true or false; else leave it a string."""
    if argument.lower() in ("true", "false"):
        return argument.lower() == "true"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(argument)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return argument
