"""Finished runs of a folder: one compressed file, and single files since."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from recbole_fedras.config.checkpoint import replacing
from recbole_fedras.experiments.identity import Identity, Outcome, identity_of

#: All runs of a folder, a line of JSON each, by name.
COMPACT = "runs.jsonl.xz"

#: Runs that have ended since, a file each: a sweep that is killed loses none of them.
SINGLE = "runs"


class Runs:
    """Finished runs, found by what they computed.

    Parameters
    ----------
    folder : Path
        Where runs are kept.
    beside : Path, optional
        A folder of other folders of runs; those used are copied.
    """

    def __init__(self, folder: Path, beside: Path | None = None) -> None:
        self._folder = folder
        self._named: dict[str, Outcome] = {}
        self._kin: dict[str, list[Outcome]] = {}
        self._replaced: set[str] = set()
        others = sorted(beside.glob("*/")) if beside else []
        for place in [*others, folder]:
            for run in _read(place):
                self._index(run)
        self._kept = {identity_of(run).name for run in _read(folder)}

    def find(self, identity: Identity) -> Outcome | None:
        """Return the run of that name, else one by other code that agrees."""
        return self._named.get(identity.name) or self._older(identity)

    def add(self, identity: Identity, run: Outcome) -> None:
        """Keep a run that has just ended, in place of an older one."""
        if (older := self._older(identity)) is not None:
            self._replaced.add(identity_of(older).name)
        self._index(run)
        folder = self._folder / SINGLE
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{identity.name}.json") as file:
            file.write(json.dumps(run).encode())

    def keep(self, runs: Iterable[Outcome]) -> None:
        """Put all of this folder, and these of others, into its one file."""
        used = {identity_of(run).name: run for run in runs}
        singles = list((self._folder / SINGLE).glob("*.json"))
        if not singles and used.keys() <= self._kept:
            return
        # Another sweep may have written here since.
        found = used | {identity_of(run).name: run for run in _read(self._folder)}
        found = {name: found[name] for name in sorted(found.keys() - self._replaced)}
        lines = "".join(
            json.dumps(run, separators=(",", ":")) + "\n" for run in found.values()
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / COMPACT) as file:
            file.write(lzma.compress(lines.encode()))
        self._kept = set(found)
        for path in singles:
            path.unlink(missing_ok=True)

    def _index(self, run: Outcome) -> None:
        identity = identity_of(run)
        self._named[identity.name] = run
        self._kin.setdefault(identity.kin, []).append(run)

    def _older(self, identity: Identity) -> Outcome | None:
        for run in self._kin.get(identity.kin, []):
            other = identity_of(run)
            if other.name != identity.name and identity.agrees(other):
                return run
        return None


def _read(folder: Path) -> Iterator[Outcome]:
    """Yield the runs of a folder, the newest of a name last."""
    compact = folder / COMPACT
    if compact.is_file():
        with lzma.open(compact, "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)
    for path in sorted((folder / SINGLE).glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))
