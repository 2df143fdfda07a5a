"""What else a configuration names: aggregator, policy, transforms, attack, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from recbole.evaluator import metrics_dict
from recbole.evaluator.base_metric import AbstractMetric
from torch import Tensor

from recbole_fedras.compressor import Compressor
from recbole_fedras.compressor.measured import Measured, Noted
from recbole_fedras.config import build, registry, schema
from recbole_fedras.config.values import refuse
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.attacks.base import Attack
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.server.aggregation import Aggregator, InverseFrequency
from recbole_fedras.federation.server.broadcast import Broadcast
from recbole_fedras.federation.server.downlink import DownlinkPolicy
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.federation.simulation import Methods
from recbole_fedras.federation.transforms import Transform
from recbole_fedras.federation.world.base import World
from recbole_fedras.federation.world.population import Described

if TYPE_CHECKING:
    from recbole_fedras.config import Config


class Parts(NamedTuple):
    """Names and classes of the parts of a run, besides model and compressors.

    Attributes
    ----------
    aggregation, replica : tuple
        Name and class.
    transforms : list of tuple
        The same, in the order that they are applied in.
    attack : tuple or None
        Likewise; None: nobody attacks.
    world : tuple or None
        Likewise; None: no time passes.
    metrics : list of tuple
        Those of the user's own.
    """

    aggregation: tuple[str, type[Aggregator]]
    replica: tuple[str, type[DownlinkPolicy]]
    transforms: list[tuple[str, type[Transform]]]
    attack: tuple[str, type[Attack]] | None
    world: tuple[str, type[World]] | None
    metrics: list[tuple[str, type]]

    def keys(self, taken: set[str]) -> dict[str, Any]:
        """Return the keys of all parts, with their defaults.

        Raises
        ------
        ConfigError
            If two parts have the same key, or one has a key of ``taken``.
        """
        keys: dict[str, Any] = {}
        owners: dict[str, str] = {}
        for kind, (name, found) in self._named():
            own = build.own_keys(kind, name, found, taken)
            own.pop(f"{kind}_class", None)  # the names say which
            for key in sorted(own.keys() & keys.keys()):
                raise ConfigError(
                    f"{owners[key]} and {kind}={name!r} both have the key {key!r}: "
                    "choose one of them, or let a class of your own name its "
                    "parameter otherwise"
                )
            keys |= own
            owners |= dict.fromkeys(own, f"{kind}={name!r}")
        return keys

    def _named(self) -> Iterator[tuple[str, tuple[str, type]]]:
        yield "aggregation", self.aggregation
        yield "replica", self.replica
        for transform in self.transforms:
            yield "transform", transform
        if self.attack is not None:
            yield "attack", self.attack
        if self.world is not None:
            yield "world", self.world
        for metric in self.metrics:
            yield "metric", metric


def find_parts(chosen: dict[str, Any]) -> Parts:
    """Find the parts of the keys chosen.

    Raises
    ------
    ConfigError
        If one is unknown or cannot be imported.
    """
    shipped = [
        (name, registry.find("transform", "transforms", name, None, Transform))
        for name in names_in(chosen, "transforms")
    ]
    metrics = _users(chosen, "metric_class", AbstractMetric)
    for name, found in metrics:
        _check_metric(name, found)
    return Parts(
        _find(chosen, "aggregation", Aggregator),
        _find(chosen, "replica", DownlinkPolicy),
        [*shipped, *_users(chosen, "transform_class", Transform)],
        None if chosen.get("attack") is None else _find(chosen, "attack", Attack),
        None if chosen.get("world") is None else _find(chosen, "world", World),
        metrics,
    )


def names_in(chosen: dict[str, Any], key: str) -> list[str]:
    """Return a key's names: a list, one alone, or none."""
    names = chosen.get(key) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{key}={names!r} is not allowed; it must be a list of names")
    return names


def _users(chosen: dict[str, Any], key: str, base: type) -> list[tuple[str, type]]:
    """Return names and classes of a key that holds paths."""
    return [
        (path.rpartition(".")[2], registry.load_class(key, path, base))
        for path in names_in(chosen, key)
    ]


def _find(chosen: dict[str, Any], kind: str, base: type) -> tuple[str, type]:
    name, path = str(chosen[kind]), chosen.get(f"{kind}_class")
    return name, registry.find(kind, kind, name, path, base)


def _check_metric(name: str, found: type) -> None:
    """Refuse what RecBole could not use."""
    for attribute in ("metric_type", "metric_need"):
        if not hasattr(found, attribute):
            raise ConfigError(
                f"metric_class: {name} must have the attribute {attribute}, as a "
                "TopkMetric of RecBole's has"
            )
    if isinstance(metrics_dict.get(name.lower()), type):  # ours are no types there
        raise ConfigError(
            f"metric_class: {name} is the name of a metric of RecBole's; it must have "
            "another"
        )


class _Policy(NamedTuple):
    """A replica policy that is made when there is a server, of the keys by then."""

    config: Config
    name: str
    found: type[DownlinkPolicy]

    @property
    def shared(self) -> bool:
        return self.found.shared

    @property
    def on_grid(self) -> bool:
        return self.found.on_grid

    def __call__(
        self, agreement: Agreement, compressor: Compressor, parameters: SharedParameters
    ) -> DownlinkPolicy:
        given = agreement, compressor, parameters
        return build.make(self.config, "replica", self.name, self.found, *given)


def make_methods(config: Config, dataset: Any = None) -> Methods:
    """Build all parts of a round; the policy waits for its server.

    Parameters
    ----------
    config : Config
    dataset : recbole.data.dataset.Dataset, optional
        Knows the items that an attack is about; a server needs none.

    Raises
    ------
    ConfigError
        For values that one does not take.
    """
    parts = config.parts
    aggregator = build.make(config, "aggregation", *parts.aggregation)
    transforms = [build.make(config, "transform", *part) for part in parts.transforms]
    policy = _Policy(config, *parts.replica)
    attack = build.make(config, "attack", *parts.attack) if parts.attack else None
    if attack is not None and attack.targets and dataset is not None:
        attack.target_ids = _numbers(attack.targets, dataset)
    compressors = config.make_compressors()
    if config["uplink_feedback"] and not compressors[0].contracting:
        name = config.compressors["uplink"][0]
        refuse(
            config,
            "uplink_feedback",
            f"False with {name} as it is set: it would add up what never arrives",
        )
    if config["report_contraction"]:
        compressors = _measured(*compressors)
    world = None
    if parts.world is not None:
        described = build.make(config, "world", *parts.world)
        world = Described(described, schema.conditions(config))
    return Methods(*compressors, aggregator, policy, tuple(transforms), attack, world)


def _measured(
    uplink: Compressor, downlink: Compressor
) -> tuple[Compressor, Compressor]:
    """Let both note what they lose; the downlink's tells."""
    noted = Noted()
    return (
        cast(Compressor, Measured(uplink, "uplink", noted)),
        cast(Compressor, Measured(downlink, "downlink", noted)),
    )


def _numbers(tokens: Sequence[str], dataset: Any) -> Tensor:
    """Return items' numbers, from 0, increasing.

    Raises
    ------
    ConfigError
        That names one which is not among them.
    """
    known = dataset.field2token_id[dataset.iid_field]
    for token in tokens:
        if not known.get(token):  # [PAD] is 0
            raise ConfigError(
                f"attack_target: the dataset has no item {token!r}; name it as its "
                "file does"
            )
    return torch.tensor(sorted({int(known[token]) - 1 for token in tokens}))


#: What holds before the keys are read.
NO_PARTS = Parts(("", InverseFrequency), ("", Broadcast), [], None, None, [])
