"""Ranks that ``torchrun`` has started, here or on many machines, as ways to shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from logging import getLogger

import torch
import torch.distributed as dist

_WEEK = timedelta(days=7)  # a rank may wait for its next request for long


def world() -> int:
    """Return how many ranks there are; 1 without ``torchrun``."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which of them this process is; 0 without ``torchrun``."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined() -> Iterator[None]:
    """Join the other ranks; they talk by gloo, from CPU to CPU."""
    dist.init_process_group("gloo", timeout=_WEEK)
    try:
        yield
    finally:
        dist.destroy_process_group()


class RankLinks:
    """Ways of rank 0 to all ranks, of which it is one itself.

    Parameters
    ----------
    handle : callable
        Answers for the shard of rank 0.
    """

    def __init__(self, handle: Callable[[bytes], Iterable[bytes]]) -> None:
        self._handle = handle
        self._there = list(range(1, world()))

    def names(self) -> list[str]:
        """Return the ranks that have not been lost."""
        return ["0", *map(str, self._there)]

    def ask(
        self, requests: Mapping[str, bytes], deadline: float | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Send requests, answer for this rank, then take the others' answers in turn.

        There is no deadline: ranks are of one simulation.
        """
        asked = [rank for rank in self._there if str(rank) in requests]
        for rank in asked:
            self._send(rank, requests[str(rank)])
        if "0" in requests:
            yield from (("0", frame) for frame in self._handle(requests["0"]))
        for rank in asked:
            while frame := self._received(rank):
                yield str(rank), frame

    def _send(self, rank: int, data: bytes) -> None:
        try:
            send(data, rank)
        except RuntimeError as error:
            self._lose(rank, error)

    def _received(self, rank: int) -> bytes | None:
        try:
            return receive(rank) if rank in self._there else None
        except RuntimeError as error:
            self._lose(rank, error)
            return None

    def _lose(self, rank: int, error: RuntimeError) -> None:
        getLogger(__name__).warning("rank %d is lost: %s", rank, error)
        self._there.remove(rank)

    def traffic(self) -> dict[str, int]:
        """Return nothing: gloo does not count."""
        return {}

    def close(self) -> None:
        """End the others."""
        for rank in list(self._there):
            self._send(rank, b"")


def serve(handle: Callable[[bytes], Iterable[bytes]]) -> None:
    """Answer rank 0, until it ends.

    Frames are sent while the next are made; rank 0 takes them once its own are done.
    """
    while request := receive(0):
        sent = [start_to_send(frame, 0) for frame in handle(request)]
        sent.append(start_to_send(b"", 0))
        for parts in sent:
            for part in parts:
                part.wait()


def start_to_send(data: bytes, rank: int) -> list[dist.Work]:
    """Begin to send bytes, their number first."""
    parts = [torch.tensor([len(data)])]
    if data:
        parts.append(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return [work for part in parts if (work := dist.isend(part, rank))]


def send(data: bytes, rank: int) -> None:
    """Send bytes."""
    for part in start_to_send(data, rank):
        part.wait()


def receive(rank: int) -> bytes:
    """Receive what :func:`send` has sent."""
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, rank)
    data = torch.empty(int(size), dtype=torch.uint8)
    if len(data):
        dist.recv(data, rank)
    return data.numpy().tobytes()
