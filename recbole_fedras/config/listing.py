"""What ``--list`` shows: classes as their source describes them, nothing imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from recbole_fedras.config import registry


class Row(NamedTuple):
    """One line of the listing."""

    kind: str
    name: str
    what: str
    keys: str


def listing(config_files: Sequence[str]) -> list[Row]:
    """Describe the classes of every kind, ours and those of the files."""
    rows = []
    with registry.importable(config_files):
        given: dict[str, Any] = {}
        for file in config_files:
            given |= registry.read_yaml(file)
        for kind, n_given in registry.GIVEN.items():
            for name, of_yaml in _named(kind, given):
                what, parameters = _about(kind, of_yaml)
                keys = dict([*parameters.items()][n_given:]) | of_yaml
                shown = ", ".join(f"{key}={value}" for key, value in keys.items())
                rows.append(Row(kind, name, what, shown))
    return rows


def _about(kind: str, of_yaml: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Describe a name's class, or say whose name with other keys it is."""
    if kind in of_yaml:
        return f"{of_yaml.pop(kind)}, with this key", {}
    return describe(str(of_yaml.pop(f"{kind}_class")))


def _named(kind: str, given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of a kind, with the keys that they come with."""
    names = registry.names(kind)
    found = {name: registry.read_properties(kind, name) for name in names}
    paths = given.get(f"{kind}_class") or []
    for path in [paths] if isinstance(paths, str) else paths:
        found[str(given.get(kind) or path.rpartition(".")[2])] = {f"{kind}_class": path}
    yield from found.items()


def describe(path: str) -> tuple[str, dict[str, Any]]:
    """Return first line and constructor's defaults of ``package.module.Class``.

    Both are empty where the source does not say: for a compiled class, or one that is
    made at run time.
    """
    module, _, name = path.rpartition(".")
    what = ""
    while (found := _find(module, name)) is not None:
        module, definition = found
        what = what or (ast.get_docstring(definition) or "").partition("\n")[0]
        parameters = _constructor(definition)
        if parameters is not None:
            return what, parameters
        bases = [base.id for base in definition.bases if isinstance(base, ast.Name)]
        name = next(iter(bases), "")
    return what, {}


def _find(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """Find a class where it is defined, wherever it is imported from."""
    file = _source(module)
    if file is None:
        return None
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(node.module, alias.name)
    return None


def _source(module: str) -> Path | None:
    """Return a module's file, without importing the packages that it is in."""
    where: Sequence[str] | None = None
    full, file = "", None
    for part in module.split("."):
        full = f"{full}.{part}".lstrip(".")
        spec = PathFinder.find_spec(full, where)
        if spec is None:
            return None
        where, file = spec.submodule_search_locations, spec.origin
    return Path(file) if file and file.endswith(".py") else None


def _constructor(definition: ast.ClassDef) -> dict[str, Any] | None:
    """Return a constructor's parameters and their defaults, if it has one."""
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            arguments = node.args
            names = [argument.arg for argument in arguments.args[1:]]
            n_required = max(len(names) - len(arguments.defaults), 0)
            values: list[ast.expr | None] = [None] * n_required
            values += arguments.defaults
            names += [argument.arg for argument in arguments.kwonlyargs]
            values += arguments.kw_defaults
            return {
                name: value and _value(value)
                for name, value in zip(names, values, strict=True)
            }
    return None


def _value(default: ast.expr) -> Any:
    """Return a default's value, or how it is written where that is no literal."""
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)
