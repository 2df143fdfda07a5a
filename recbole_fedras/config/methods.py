"""The parts of a round that a configuration names: aggregator, policy, transforms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from recbole_fedras.config import build, registry
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.server.aggregation import Aggregator
from recbole_fedras.federation.server.downlink import DownlinkPolicy
from recbole_fedras.federation.simulation import Methods
from recbole_fedras.federation.transforms import Transform

if TYPE_CHECKING:
    from recbole_fedras.config import Config


class Parts(NamedTuple):
    """Names and classes of the parts of a round.

    Attributes
    ----------
    aggregation, replica : tuple
        Name and class.
    transforms : list of tuple
        The same, in the order that they are applied in.
    """

    aggregation: tuple[str, type[Aggregator]]
    replica: tuple[str, type[DownlinkPolicy]]
    transforms: list[tuple[str, type[Transform]]]

    def keys(self, taken: set[str]) -> dict[str, Any]:
        """Return the keys of all parts, with their defaults."""
        keys: dict[str, Any] = {}
        for kind, (name, found) in self._named():
            keys |= build.own_keys(kind, name, found, taken)
        return {key: value for key, value in keys.items() if not key.endswith("_class")}

    def _named(self) -> Iterator[tuple[str, tuple[str, type]]]:
        yield "aggregation", self.aggregation
        yield "replica", self.replica
        for transform in self.transforms:
            yield "transform", transform


def find_parts(chosen: dict[str, Any]) -> Parts:
    """Find the parts of the keys chosen.

    Raises
    ------
    ConfigError
        If one is unknown or cannot be imported.
    """
    shipped = [
        (name, registry.find("transform", "transforms", name, None, Transform))
        for name in _names(chosen, "transforms")
    ]
    users = [
        (
            path.rpartition(".")[2],
            registry.load_class("transform_class", path, Transform),
        )
        for path in _names(chosen, "transform_class")
    ]
    return Parts(
        _find(chosen, "aggregation", Aggregator),
        _find(chosen, "replica", DownlinkPolicy),
        [*shipped, *users],
    )


def _names(chosen: dict[str, Any], key: str) -> list[str]:
    """Return a key's names: a list, one alone, or none."""
    names = chosen.get(key) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{key}={names!r} is not allowed; it must be a list of names")
    return names


def _find(chosen: dict[str, Any], kind: str, base: type) -> tuple[str, type]:
    name, path = str(chosen[kind]), chosen.get(f"{kind}_class")
    return name, registry.find(kind, kind, name, path, base)


def make_methods(config: Config) -> Methods:
    """Build all parts of a round.

    Raises
    ------
    ConfigError
        For values that one does not take.
    """
    parts = config.parts
    aggregator = build.make(config, "aggregation", *parts.aggregation)
    transforms = [build.make(config, "transform", *part) for part in parts.transforms]
    uplink, downlink = config.make_compressors()
    return Methods(uplink, downlink, aggregator, parts.replica[1], tuple(transforms))
