"""What ``--list`` shows: classes as their source describes them, nothing imported."""

from __future__ import annotations

import ast
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from recbole_fedras.config import registry
from recbole_fedras.errors import ConfigError


class Row(NamedTuple):
    """One line of the listing."""

    kind: str
    name: str
    what: str
    keys: str
    path: str


def listed(chosen: Sequence[str], config_files: Sequence[str]) -> str:
    """Return what ``--list`` prints, no wider than the terminal.

    Parameters
    ----------
    chosen : sequence of str
        Nothing: all kinds, a line each name. A kind: its names with their keys. A kind
        and a name: all that the class says of itself.
    config_files : sequence of str

    Raises
    ------
    ConfigError
        If there is no such kind or name.
    """
    rows = listing(config_files)
    width = shutil.get_terminal_size().columns
    if not chosen:
        return "\n\n".join(
            f"{kind}\n{_lines([row for row in rows if row.kind == kind], width)}"
            for kind in dict.fromkeys(row.kind for row in rows)
        )
    kind, *names = chosen
    if len(names) > 1:
        raise ConfigError(f"--list takes a kind and a name, not {' '.join(chosen)}")
    rows = [row for row in rows if row.kind == kind]
    if not rows:
        raise _unknown("kind", kind, [*registry.GIVEN, "preset"])
    if not names:
        columns = [(row.name, row.what, row.keys) for row in rows]
        sizes = [None, max(20, width // 2 - 12), max(20, width // 2 - 12)]
        headers = (kind, "what", "keys")
        return tabulate(columns, headers=headers, maxcolwidths=sizes)
    for row in rows:
        if row.name == names[0]:
            return _page(row)
    raise _unknown(kind, names[0], [row.name for row in rows])


def _lines(rows: Sequence[Row], width: int) -> str:
    longest = max(len(row.name) for row in rows)
    room = max(width - longest - 4, 20)
    whats = [textwrap.shorten(row.what, room, placeholder=" ...") for row in rows]
    return "\n".join(
        f"  {row.name:{longest}}  {what}" for row, what in zip(rows, whats, strict=True)
    )


def _unknown(what: str, given: str, known: list[str]) -> ConfigError:
    near = get_close_matches(given, known, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"there is no {what} {given!r}; {meant}{', '.join(known)}")


def _page(row: Row) -> str:
    """Say all that is known of a name: its keys, its source, its class's docstring."""
    module, _, name = row.path.rpartition(".")
    found = _find(module, name) if row.path else None
    text = (ast.get_docstring(found[1]) or "") if found else row.what
    head = [f"{row.kind}: {row.name}", f"keys: {row.keys or 'none of its own'}"]
    if row.path:
        head.append(f"class: {row.path}")
    return "\n".join([*head, "", inspect.cleandoc(text)])


def listing(config_files: Sequence[str]) -> list[Row]:
    """Describe the classes of every kind, ours and those of the files."""
    rows = []
    with registry.importable(config_files):
        given: dict[str, Any] = {}
        for file in config_files:
            given |= registry.read_yaml(file)
        for kind, n_given in registry.GIVEN.items():
            for name, of_yaml in _named(kind, given):
                path = str(of_yaml.get(f"{kind}_class", ""))
                what, parameters = _about(kind, of_yaml)
                keys = dict([*parameters.items()][n_given:]) | of_yaml
                rows.append(Row(kind, name, what, _shown(keys), path))
    return [*rows, *_presets()]


def _presets() -> Iterator[Row]:
    """Describe presets by the first line of their files, which is a comment."""
    folder = registry.properties_folder() / "preset"
    for name in registry.names("preset"):
        what = (folder / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        keys = registry.read_properties("preset", name)
        yield Row("preset", name, what.removeprefix("# "), _shown(keys), "")


def _shown(keys: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items())


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
