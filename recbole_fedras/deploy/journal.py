"""What a shard keeps on its node's disk, so that it goes on after any end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import torch

from recbole_fedras.config.checkpoint import replacing, write_checkpoint

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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        self, load: Callable[[dict[str, Any]], None], handle: Callable[[bytes], bytes]
    ) -> None:
        """Load the state, if there is one, and do again what came after it."""
        if self._state.is_file():
            saved = torch.load(self._state, weights_only=True)
            self._generation = saved["generation"]
            load(saved["state"])
            if saved["last"]:
                handle(saved["last"])
        for request in self._requests():
            handle(request)
            self._n_requests += 1
            self._last = request

    def _requests(self) -> list[bytes]:
        """Return what was written since the state; a last one may be cut off."""
        if not self._log.is_file():
            return []
        unpacker = msgpack.Unpacker(max_buffer_size=2**32 - 1)
        unpacker.feed(self._log.read_bytes())
        return list(unpacker)

    @property
    def _log(self) -> Path:
        return self._folder / f"requests-{self._generation}"

    def append(self, request: bytes) -> None:
        """Write a request that has been done, before it is answered."""
        with _private(self._log, "ab") as file:
            size = file.tell()
            try:
                file.write(msgpack.packb(request))
                file.flush()
                os.fsync(file.fileno())
            except OSError:  # a full disk: leave nothing cut off behind
                os.truncate(self._log, size)
                raise
        self._n_requests += 1
        self._last = request

    @property
    def is_long(self) -> bool:
        """Whether it is time for :meth:`begin_anew`."""
        return self._n_requests >= _MOST_REQUESTS

    def begin_anew(self, state: dict[str, Any]) -> None:
        """Write a state in force; keep the last request, whose answer is pending."""
        old = self._log
        self._generation += 1
        saved = {"state": state, "last": self._last, "generation": self._generation}
        write_checkpoint(saved, self._state)
        self._n_requests = 0
        old.unlink(missing_ok=True)

    def keep_best(self, state: dict[str, Any]) -> None:
        """Write what clients hold now as what they hold at the best round."""
        write_checkpoint({"state": state}, self._best)

    def best(self) -> dict[str, Any] | None:
        """Return what clients held at the best round; None if that was never told."""
        if not self._best.is_file():
            return None
        saved: dict[str, Any] = torch.load(self._best, weights_only=True)["state"]
        return saved


def _private(path: Path, mode: str) -> Any:
    """Open a file that only its owner reads."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, 0o600))
