"""Ways to the processes that hold shards, whatever carries the bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol


class Links(Protocol):
    """Ways to the processes that hold shards: bytes there, bytes back."""

    def names(self) -> list[str]:
        """Return who can be reached now."""
        ...

    def ask(
        self, requests: Mapping[str, bytes], deadline: float | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Carry a request to each shard named; yield its name and answer.

        First come, first yielded. Who does not answer within ``deadline`` seconds, or
        is gone, is missing. A late answer of an earlier ask is never yielded.
        """
        ...

    def close(self) -> None:
        """Let go of the ways."""
        ...
