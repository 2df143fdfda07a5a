"""Pages of the reference that are made from the code: all keys, the command line."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import recbole

from recbole_fedras.__main__ import main
from recbole_fedras.commands import COMMANDS
from recbole_fedras.config import Config, recbole_keys, registry, rules, schema
from recbole_fedras.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]

#: A value that no key may have: what refuses it says what is allowed.
NONSENSE = {"?": "?"}

#: What reads keys that are no parameters of a class.
_READERS: list[Callable[[Any], Any]] = [
    schema.federation,
    lambda keys: schema.federation(WithOne(keys, "bandwidth", [0.5, 0.9])),
    lambda keys: schema.local_training(keys, warmup=False),
    lambda keys: schema.local_training(keys, warmup=True),
    lambda keys: schema.model_settings(keys, 0),
    lambda keys: schema.run_settings(keys, keys),
    schema.deployment_settings,
    schema.evaluation_settings,
    schema.data_settings,
    rules.check_bases,
]

_COMMENT = re.compile(r"^(\w+):.*?(?:#\s*(?:\((\w+)\)\s*)?(.*))?$")


class WithOne:
    """A configuration in which one key has another value."""

    def __init__(self, keys: Any, key: str, value: Any) -> None:
        self.keys, self.key, self.value = keys, key, value

    def __getitem__(self, key: str) -> Any:
        return self.value if key == self.key else self.keys[key]


def keys_page() -> str:
    """Return every key with type, default, what is allowed and what it means.

    Type and meaning are those of the comments in ``properties/``. What is allowed is
    what the error message of a value says that is not.
    """
    config = Config()
    text = (registry.properties_folder() / "overall.yaml").read_text(encoding="utf-8")
    defaults = registry.read_properties(".", "overall")
    parts = []
    for title, documented in _sections(text):
        rows = []
        for key, (kind, meaning) in documented.items():
            meaning = meaning or _purpose(key)
            rows.append((key, kind, defaults[key], allowed_of(key, config), meaning))
        parts.append(_table(title, rows))
    parts += [_table(*of_kind) for of_kind in _kinds()]
    parts.append(_table("RecBole's own", _recboles(set(defaults))))
    return "\n".join(parts)


def allowed_of(key: str, config: Any) -> str:
    """Return what a key may be, as its error message says; or nothing."""
    if key in recbole_keys.KEYS:
        return _shortened(recbole_keys.KEYS[key].form.allowed)
    kind = key.removeprefix("uplink_").removeprefix("downlink_").removesuffix("s")
    if kind in {*registry.GIVEN, "preset"}:
        names = ", ".join(f"`{name}`" for name in registry.names(kind))
        return names if kind == "preset" else f"{names} or your own"
    if key in recbole_keys.WITHOUT_EFFECT:
        return ", ".join(map(str, recbole_keys.WITHOUT_EFFECT[key].silent))
    if key == "attacker_class":  # no run reads it, `leak` alone does
        return "`package.module.Class`, or a list of these"
    if key == "demands":  # of any keys, also of a class of one's own
        return "a dict of keys and values that a run must have"
    try:
        for reader in _READERS:
            with contextlib.suppress(KeyError, AttributeError, TypeError):
                reader(WithOne(config, key, NONSENSE))
        # Without a world its keys may be nothing but their defaults.
        fixed = {"compressor": "none", "world": "constant"}
        Config(config_dict=fixed | {key: NONSENSE})
    except ConfigError as error:
        found = re.match(rf"{key}=.*? must be (.*)", str(error))
        return _shortened(found[1]) if found else ""
    return ""


def _shortened(allowed: str) -> str:
    """Leave out a bound that nobody would meet, and the nonsense that was tried."""
    allowed = allowed.replace(f" to {2**62}", "")
    return re.sub(r"^without '\?'; .*allowed: \[(.*)\]", r"a dict with \1", allowed)


def _purpose(key: str) -> str:
    """Return what a key of RecBole's is for."""
    return recbole_keys.KEYS[key].purpose if key in recbole_keys.KEYS else ""


def _sections(text: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Yield a YAML file's sections: keys with type and meaning, from its comments."""
    title, keys, last = "", {}, ""
    for line in text.splitlines()[1:]:
        if line.startswith("# "):
            if keys:
                yield title, keys
            title, keys = line[2:], {}
        elif match := _COMMENT.match(line):
            last, kind, meaning = match.groups()
            keys[last] = (kind or "", meaning or "")
        elif last and line.lstrip().startswith("#"):
            kind, meaning = keys[last]
            keys[last] = (kind, f"{meaning} {line.strip(' #')}")
    yield title, keys


def _kinds() -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield the keys that come with the classes of each kind."""
    for kind in registry.GIVEN:
        rows = []
        for name in registry.names(kind):
            path = registry.properties_folder() / kind / f"{name}.yaml"
            of_file = registry.read_properties(kind, name)
            text = "#\n" + path.read_text(encoding="utf-8")
            documented = {k: v for _, keys in _sections(text) for k, v in keys.items()}
            for key, default in _of_class(kind, of_file).items():
                type_name, meaning = documented.get(key, ("", ""))
                rows.append((key, type_name, default, f"with `{name}`", meaning))
        if rows:
            yield f"Of one {kind.replace('_', ' ')} only", rows


def _of_class(kind: str, of_file: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a name: parameters of its class, and those of its file."""
    path = of_file.get(f"{kind}_class")
    keys: dict[str, Any] = {}
    if path:
        found = registry.load_class(f"{kind}_class", path, object)
        keys = dict([*registry.hyper_parameters(found).items()][registry.GIVEN[kind] :])
    return keys | {k: v for k, v in of_file.items() if k not in (kind, f"{kind}_class")}


def _recboles(ours: set[str]) -> list[tuple[Any, ...]]:
    """Return RecBole's keys that a federated run reads, less those shown before."""
    properties = Path(recbole.__file__).parent / "properties"
    defaults = registry.read_yaml(properties / "overall.yaml")
    defaults |= registry.read_yaml(properties / "dataset" / "sample.yaml")
    return [
        (name, "", defaults.get(name), allowed_of(name, None), key.purpose)
        for name, key in recbole_keys.KEYS.items()
        if name not in ours
    ]


def _table(title: str, rows: list[tuple[Any, ...]]) -> str:
    lines = [f"## {title}", "", "| key | type | default | allowed | meaning |"]
    lines.append("|---|---|---|---|---|")
    for key, kind, default, allowed, meaning in rows:
        kind = kind or ("" if default is None else type(default).__name__)
        shown = "" if default is None else f"`{default!r}`"
        cells = (f"`{key}`", kind, shown, allowed, _escaped(meaning))
        lines.append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        )
    return "\n".join([*lines, ""])


def _escaped(meaning: str) -> str:
    return re.sub(r"([*<\[\]~])", r"\\\1", meaning)


def command_page() -> str:
    """Return the help of every command."""
    parts = []
    for command in ("", *list(COMMANDS)[1:]):  # the first is what a bare command does
        title = f"recbole-fedras {command}".strip()
        parts += [f"## {title}", "", "```text", help_of(command), "```", ""]
    return "\n".join(parts)


def help_of(command: str) -> str:
    """Return what ``--help`` prints."""
    out = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="90")
    with wide, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    return out.getvalue().rstrip()


def results_page() -> str:
    """Return the page of results; the site has its tables as files."""
    return _of_root("results/README.md").replace("/table.md)", "/table.csv)")


def contributing_page() -> str:
    """Return the page for contributors."""
    return _of_root("CONTRIBUTING.md")


def changelog_page() -> str:
    """Return what has changed."""
    return _of_root("CHANGELOG.md")


def _of_root(name: str) -> str:
    """Return a page that stands outside of this folder, without its title.

    Its links are made to lead from here.
    """
    text = (ROOT / name).read_text(encoding="utf-8").partition("\n")[2]
    beside = Path(name).parent.as_posix()

    def redirect(match: re.Match[str]) -> str:
        target = match[1]
        if target.startswith(("http", "#")):
            return match[0]
        path = os.path.normpath(f"{beside}/{target}")
        inside = path.removeprefix("docs/")
        return f"]({inside if inside != path else f'../{path}'})"

    return re.sub(r"\]\(([^)\s]+)\)", redirect, text)
