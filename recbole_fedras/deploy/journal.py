"""What a shard keeps on its node's disk, so that it goes on after any end."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import msgpack
import torch

from recbole_fedras.config.checkpoint import replacing, sync_folder, write_checkpoint
from recbole_fedras.errors import PayloadError

#: Requests that are done again at most, when a node starts: a balance of that time and
#: of writing the whole state.
_MOST_REQUESTS = 16


class Journal:
    """A state, and the requests since: to do these again leads to where it was.

    A request is written before it is answered. So what a server counts is never
    lost, and what was not written was never answered.

    Parameters
    ----------
    folder : Path
        Of a run; made, for its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True)
            sync_folder(folder.parent)
        self._folder = folder
        self._state = folder / "state.pth"
        self._best = folder / "best.pth"
        self._generation = 0
        self._n_requests = 0
        self._last = b""
        self._term: int | None = None

    @property
    def term(self) -> int:
        """Term of the newest server that has asked for anything."""
        if self._term is None:
            written = self._folder / "term"
            self._term = int(written.read_text()) if written.is_file() else 0
        return self._term

    @term.setter
    def term(self, term: int) -> None:
        with replacing(self._folder / "term") as file:
            file.write(str(term).encode())
        self._term = term

    def replay(
        self,
        load: Callable[[dict[str, Any]], None],
        do_again: Callable[[bytes], object],
    ) -> None:
        """Load the state, if there is one, and do again what came after it."""
        if self._state.is_file():
            saved = torch.load(self._state, weights_only=True)
            self._generation = saved["generation"]
            load(saved["state"])
            if saved["last"]:
                do_again(saved["last"])
        for old in self._folder.glob("requests-*"):
            if old != self._log:  # the state has them
                old.unlink()
        for request in self._requests():
            do_again(request)
            self._n_requests += 1
            self._last = request

    def _requests(self) -> list[bytes]:
        """Return what was written since the state; take away a last one cut off."""
        if not self._log.is_file():
            return []
        requests, size = [], 0
        with self._log.open("rb") as file:
            unpacker = msgpack.Unpacker(file, max_buffer_size=0)
            for request in unpacker:
                if not isinstance(request, bytes):
                    break
                requests.append(request)
                size = unpacker.tell()
        os.truncate(self._log, size)
        return requests

    @property
    def _log(self) -> Path:
        return self._folder / f"requests-{self._generation}"

    def append(self, request: bytes) -> None:
        """Write a request that has been done, before it is answered."""
        with _private(self._log) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                _write(msgpack.packb(request), file)
            except OSError:  # a full disk: leave nothing cut off behind
                file.truncate(size)
                raise
        if not size:  # a new file
            sync_folder(self._folder)
        self._n_requests += 1
        self._last = request

    @property
    def is_long(self) -> bool:
        """Whether it is time for :meth:`begin_anew`."""
        return self._n_requests >= _MOST_REQUESTS

    def begin_anew(self, state: dict[str, Any]) -> None:
        """Write a state in force; keep the last request, whose answer is pending."""
        generation = self._generation + 1
        saved = {"state": state, "last": self._last, "generation": generation}
        write_checkpoint(saved, self._state)
        self._log.unlink(missing_ok=True)
        self._generation, self._n_requests = generation, 0

    def write_once(self, name: str, data: bytes) -> None:
        """Write a file that never changes.

        Raises
        ------
        PayloadError
            If it is there, and holds something else.
        """
        path = self._folder / name
        if path.is_file():
            if path.read_bytes() != data:
                raise PayloadError(f"the run has begun, with other {name}")
            return
        with replacing(path, mode=0o600) as file:
            file.write(data)

    def read(self, name: str) -> bytes:
        """Read a file of :meth:`write_once`."""
        return (self._folder / name).read_bytes()

    def keep_best(self, round: int, state: dict[str, Any]) -> None:
        """Write what clients hold now as what they hold at the best round, once."""
        if self._best.is_file() and self._saved_best()["round"] == round:
            return  # told again: clients may hold other tables by now
        write_checkpoint({"round": round, "state": state}, self._best)

    def _saved_best(self) -> dict[str, Any]:
        saved: dict[str, Any] = torch.load(self._best, weights_only=True, mmap=True)
        return saved

    def best(self, round: int) -> dict[str, Any]:
        """Return what clients held at the best round.

        Raises
        ------
        PayloadError
            If this node was not there when that was the best.
        """
        saved = self._saved_best() if self._best.is_file() else {}
        if saved.get("round") != round:
            raise PayloadError(f"nothing was kept of round {round}, the best")
        state: dict[str, Any] = saved["state"]
        return state


def _private(path: Path) -> FileIO:
    """Open a file that only its owner reads, to write without a buffer."""
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w")


def _write(data: bytes, file: FileIO) -> None:
    """Write all, and wait until it is on the disk."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())
