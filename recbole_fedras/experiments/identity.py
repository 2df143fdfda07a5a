"""What a run is: by this, finished runs are found again."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from recbole_fedras.config import Config, registry
from recbole_fedras.config.checkpoint import plain
from recbole_fedras.config.given_keys import LOCAL, SHOWN
from recbole_fedras.data.digest import digest_of_dataset, digest_of_files
from recbole_fedras.run.provenance import PACKAGE

Keys = dict[str, Any]
Outcome = dict[str, Any]
Measure = Callable[[Keys], Outcome]

#: Keys that name a file which is neither of the dataset nor a class.
_READ = {"world_trace"}

#: Keys on whose value no other key's default depends.
_FREE = {"seed", "learning_rate"}

#: Keys that every run has, and most runs differ in.
_OLDEST = ("dataset", "model", "compressor", "learning_rate", "seed")


class Identity(NamedTuple):
    """What a run computes.

    Attributes
    ----------
    keys : dict
        As given, but for those of this machine.
    config : dict
        Every key and its value, likewise.
    measure : str
        What is done with them.
    sources : dict of str to str
        Digests of the files of one's own classes, and of others that are read, by the
        key that names one.
    data : str or None
        Digest of the dataset's files; None where they are not.
    """

    keys: Keys
    config: Keys
    measure: str
    sources: dict[str, str]
    data: str | None

    @property
    def name(self) -> str:
        """Digest of all but ``keys``: what they leave out is in ``config``."""
        return _digest_of(self._asdict() | {"keys": None})

    @property
    def kin(self) -> str:
        """Digest of some of it: what does not share this cannot be the same."""
        return _digest_of([self.measure, *(self.config.get(key) for key in _OLDEST)])

    def _preset(self) -> Keys:
        return registry.read_preset(self.config.get("preset"), self.config.get("model"))

    def agrees(self, other: Identity) -> bool:
        """Whether nothing that both know differs, and nothing gave what one knows.

        Only one of them knows a key that came, or went, between the two; or the data.
        """
        both = self.config.keys() & other.config.keys()
        return (
            self.measure == other.measure
            and self.sources == other.sources
            and (None in (self.data, other.data) or self.data == other.data)
            and all(self.config[key] == other.config[key] for key in both)
            and (self.keys | other.keys).keys() <= both
            and self._preset().keys() <= both
        )


def identity_of(outcome: Outcome) -> Identity:
    """Return the identity that a finished run was kept with."""
    return Identity(*(outcome[field] for field in Identity._fields))


class Resolver:
    """Finds the identities of many configurations.

    What is read once is kept: how the defaults resolve, but for seeds and learning
    rates; digests of files. So make a new one for each sweep.
    """

    def __init__(self) -> None:
        self._found: dict[str, Identity] = {}
        self._data: dict[tuple[str, str], str | None] = {}

    def identity(self, cell: Keys, measure: Measure) -> Identity:
        """Resolve a configuration.

        Raises
        ------
        ConfigError
            If it is not one.
        """
        of_place = _of_place(cell)
        given = {
            key: plain(value) for key, value in cell.items() if key not in of_place
        }
        free = {key: value for key, value in given.items() if key in _FREE}
        fixed = {key: plain(value) for key, value in cell.items() if key not in _FREE}
        template = _digest_of([fixed, sorted(free), measure.__name__])
        if template not in self._found:
            self._found[template] = self._resolve(cell, given, measure)
        found = self._found[template]
        return found._replace(keys=given, config=found.config | free)

    def require(self, cell: Keys) -> None:
        """Refuse what could not run here; recommenders' data may be downloaded."""

    def _resolve(self, cell: Keys, given: Keys, measure: Measure) -> Identity:
        config = Config(config_dict=cell)
        kept = given | {  # of what is given, a checkpoint to resume is not resolved
            key: value
            for key, value in config.resolved.items()
            if key not in _of_place(cell)
        }
        run = config.run_settings()
        place = (run.data_path, run.dataset)
        if place not in self._data:
            self._data[place] = digest_of_dataset(*place)
        sources = dict(_own_sources(kept))
        return Identity(given, kept, measure.__name__, sources, self._data[place])


def _of_place(cell: Keys) -> set[str]:
    """Return keys that change no result; a world's deadline does."""
    of_place = LOCAL | SHOWN
    in_world = cell.get("world") or cell.get("world_class")
    return of_place - {"deadline"} if in_world else of_place


def _own_sources(config: Keys) -> Iterator[tuple[str, str]]:
    for key, paths in config.items():
        if key.endswith("_class") and paths:
            named = [paths] if isinstance(paths, str) else paths
            for path in named:
                registry.load_class(key, path, object)
            files = [file for file in map(_file, named) if PACKAGE not in file.parents]
            if digest := digest_of_files(files):
                yield key, digest
        elif key in _READ and paths:
            yield key, digest_of_files([Path(paths)]) or ""


def _file(path: str) -> Path:
    """Return the file of ``package.module.Class``."""
    module = importlib.import_module(path.rpartition(".")[0])
    return Path(inspect.getsourcefile(module) or "")


def _digest_of(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]
