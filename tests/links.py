"""Links to nodes in this process, which may lose what they carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping


class DirectLinks:
    """Ask nodes one after the other; ``loses`` says whose answer never comes."""

    def __init__(
        self,
        handles: Mapping[str, Callable[[bytes], bytes]],
        loses: Callable[[str], bool] = lambda name: False,
    ) -> None:
        self.handles, self._loses = dict(handles), loses

    def names(self) -> list[str]:
        return list(self.handles)

    def ask(
        self, requests: Mapping[str, bytes], deadline: float | None = None
    ) -> Iterator[tuple[str, bytes]]:
        for name, request in requests.items():
            answer = self.handles[name](request)
            if not self._loses(name):
                yield name, answer

    def traffic(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self.handles = {}
