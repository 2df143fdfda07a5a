"""Finds classes and their defaults by name, in our YAML files or a user's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml


def properties_folder() -> Path:
    """Folder of the YAML files: inside the package if installed, beside it if not."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "properties"
    return installed if installed.is_dir() else package.parent / "properties"


def read_properties(kind: str, name: str) -> dict[str, Any]:
    """Read ``properties/{kind}/{name}.yaml``; empty if there is none."""
    path = properties_folder() / kind / f"{name}.yaml"
    return read_yaml(path) if path.is_file() else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file of keys and values."""
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected keys and values")
    return values


def names(kind: str) -> Iterator[str]:
    """Names that ship with a kind: ``compressor``, ``model``, ``dataset``."""
    for path in sorted((properties_folder() / kind).glob("*.yaml")):
        yield path.stem


def load_class(key: str, path: str, base: type) -> type:
    """Import the class that a config key names as ``package.module.Class``.

    Raises
    ------
    ValueError
        If it cannot be imported or does not derive from ``base``.
    """
    module_name, _, class_name = str(path).rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{key}={path!r} cannot be imported: {error}; it must read "
            "package.module.Class, the module on Python's path or beside the YAML file"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ValueError(f"{key}={path!r} is not a subclass of {base.__name__}")
    return loaded


def hyper_parameters(cls: type) -> dict[str, Any]:
    """Return a class's constructor parameters and their defaults (None: no default)."""
    return {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def required_parameters(cls: type) -> set[str]:
    """Return those of a class's constructor parameters that have no default."""
    parameters = inspect.signature(cls).parameters
    return {
        name
        for name in hyper_parameters(cls)
        if parameters[name].default is parameters[name].empty
    }


def nearest(name: str, valid: list[str]) -> str:
    """Say what ``name`` may have meant, for error messages."""
    close = get_close_matches(name, valid, n=1, cutoff=0.5) or [
        other for other in valid if other.lower() == name.lower()
    ]
    return f"did you mean {close[0]!r}? " if close else ""
