"""Finds classes and their defaults by name, in our YAML files or a user's own."""

from __future__ import annotations

import copy
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recbole_fedras.config.sources import SafeLoader
from recbole_fedras.errors import ConfigError

#: Kinds of classes, and how many of their constructors' arguments are no keys: config
#: and dataset of a model; n_items, dim, base and seed of an item embedding; agreement,
#: compressor and parameters of a replica policy; config of a metric.
GIVEN = {
    "model": 2, "item_embedding": 4, "compressor": 0, "aggregation": 0, "replica": 3,
    "transform": 0, "attack": 0, "attacker": 0, "world": 0, "metric": 1,
}  # fmt: skip

#: Files of users' classes that were loaded, and the keys that named them.
_plug_ins: dict[str, str] = {}


def properties_folder() -> Path:
    """Folder of the YAML files: inside the package if installed, beside it if not."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "properties"
    return installed if installed.is_dir() else package.parent / "properties"


def read_properties(kind: str, name: str) -> dict[str, Any]:
    """Read ``properties/{kind}/{name}.yaml``; empty if there is none."""
    path = properties_folder() / kind / f"{name}.yaml"
    if not path.is_file():
        return {}
    return copy.deepcopy(_shipped(path, path.stat().st_mtime_ns))


@cache
def _shipped(path: Path, changed_ns: int) -> dict[str, Any]:
    """Read a file of ours once: a configuration needs some 40, many times."""
    return read_yaml(path)


def read_yaml(path: str | Path, loader: type = SafeLoader) -> dict[str, Any]:
    """Read one YAML file of keys and values.

    Raises
    ------
    ConfigError
        If it is missing, or holds something else.
    """
    if not Path(path).is_file():
        raise ConfigError(f"config_files: there is no file {str(path)!r}")
    try:
        content = Path(path).read_text(encoding="utf-8")
        values = yaml.load(content, Loader=loader) or {}  # noqa: S506 - a safe loader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"config_files: {str(path)!r} is not YAML: {error}"
        raise ConfigError(message) from error
    if not isinstance(values, dict):
        raise ConfigError(f"config_files: {str(path)!r} does not hold keys and values")
    return values


def names(kind: str) -> Iterator[str]:
    """Names that ship with a kind: ``compressor``, ``model``, ``dataset``."""
    for path in sorted((properties_folder() / kind).glob("*.yaml")):
        yield path.stem


def shipped(kind: str) -> dict[str, str]:
    """Return the classes of a kind by name, without names for another's keys."""
    paths = {
        name: read_properties(kind, name).get(f"{kind}_class") for name in names(kind)
    }
    return {name: path for name, path in paths.items() if path}


def keys_by_name() -> dict[str, dict[str, Any]]:
    """Return the keys of all methods that ship: which have each, and their defaults."""
    found: dict[str, dict[str, Any]] = {}
    for kind in GIVEN:
        for name in names(kind):
            for key, value in read_properties(kind, name).items():
                if key != f"{kind}_class":
                    found.setdefault(key, {})[f"{kind}={name}"] = value
    return found


def read_preset(name: Any, model: Any = None) -> dict[str, Any]:
    """Return the keys of a preset, if one is named.

    Under ``models`` its file may have keys that are a model's alone, by its name.

    Raises
    ------
    ConfigError
        If it is unknown.
    """
    valid = list(names("preset"))
    if name is not None and name not in valid:
        raise ConfigError(
            f"preset={name!r} is unknown; {nearest(str(name), valid)}"
            f"known: {', '.join(valid)}"
        )
    keys = read_properties("preset", name) if name else {}
    of_models: dict[str, dict[str, Any]] = keys.pop("models", {})
    return keys | of_models.get(model, {})


def require_free(kind: str, key: str, name: str, path: str) -> None:
    """Refuse a name of ours to a class that came without a name.

    Raises
    ------
    ConfigError
        If it is the name of another class.
    """
    of_name = read_properties(kind, str(name))
    if of_name and of_name.get(f"{kind}_class") != path:
        raise ConfigError(
            f"{key}={name!r} names a class of ours, but {key}_class={path!r} is given "
            f"too; leave one of them out, or give it a name of its own, as "
            f"{key}={str(path).rpartition('.')[2]}"
        )


@contextmanager
def importable(config_files: Iterable[str]) -> Iterator[None]:
    """Let modules beside the config files and in the working folder be imported."""
    before = list(sys.path)
    for folder in [*(Path(file).resolve().parent for file in config_files), Path.cwd()]:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def load_class(key: str, path: str, base: type) -> type:
    """Import the class that a config key names as ``package.module.Class``.

    Raises
    ------
    ConfigError
        If it cannot be imported or does not derive from ``base``.
    """
    module_name, _, class_name = str(path).rpartition(".")
    try:
        loaded = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever the module's own code raises
        raise ConfigError(
            f"{key}={path!r} cannot be imported: {_said_where(error)}; it must read "
            "package.module.Class, the module on Python's path or beside the YAML file"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ConfigError(f"{key}={path!r} is not a subclass of {base.__name__}")
    file = getattr(sys.modules[loaded.__module__], "__file__", None)
    if file and not loaded.__module__.startswith(("recbole_fedras.", "recbole.")):
        _plug_ins[file] = f"{key}={path!r}"
    return loaded


def find(kind: str, key: str, name: str, path: str | None, base: type) -> type:
    """Find the class of a kind that a key names, in our YAML files or at a path.

    A name whose YAML file has another name of its kind stands for that one's class.

    Raises
    ------
    ConfigError
        If it is unknown or cannot be imported.
    """
    of_name = read_properties(kind, name)
    path = path or of_name.get(f"{kind}_class")
    if not path and kind in of_name:
        return find(kind, key, of_name[kind], None, base)
    if not path:
        valid = list(names(kind))
        raise ConfigError(
            f"{key}={name!r} is unknown; {nearest(name, valid)}"
            f"known: {', '.join(valid)}, or set {key}_class"
        )
    return load_class(f"{key}_class", path, base)


def _said_where(error: Exception) -> str:
    """Return an error's words, and the line of a user's module that it arose in."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    if last.filename == __file__ or last.filename.startswith("<frozen"):
        return str(error)
    return f"{type(error).__name__}: {error}, {last.filename}:{last.lineno}"


def plug_in_of(error: BaseException) -> str | None:
    """Say which user's class an error arose in, by its traceback.

    As lines it has the frames of other processes and of the errors that it is from.
    """
    lines = "".join(traceback.format_exception(error))
    found = None
    for file, line in re.findall(r'File "(.+?)", line (\d+)', lines):
        if file in _plug_ins:
            found = f"{_plug_ins[file]}, {file}:{line}"
    return found


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
