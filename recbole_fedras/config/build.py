"""Builds what a configuration names: model, compressors, what items are made of."""

from __future__ import annotations

from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import compat, registry
from recbole_fedras.config.values import refuse
from recbole_fedras.data.features import principal_components
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.embedding.full import Full
from recbole_fedras.errors import ConfigError
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.wire.ledger import DIRECTIONS

if TYPE_CHECKING:
    from recbole_fedras.config.config import Config

Floats = NDArray[np.float32]
Made = TypeVar("Made")

#: Keys that name a compressor; with ``_class`` behind, one of the user's own.
COMPRESSOR_KEYS = ("compressor", "uplink_compressor", "downlink_compressor")

#: Kinds of one class in a run, whose path alone names it too.
NAMED_KINDS = (
    "compressor", "item_embedding", "aggregation", "replica", "attack", "world",
)  # fmt: skip


def find_model(name: str, path: str | None) -> type:
    """Find a model's class at a path, in our YAML files or among RecBole's.

    Raises
    ------
    ConfigError
        If it is unknown or cannot be imported.
    """
    path = path or registry.read_properties("model", name).get("model_class")
    if path:
        return registry.load_class("model_class", path, FederatedRecommender)
    try:
        return compat.find_recboles_model(name)
    except (ValueError, AttributeError, ImportError) as error:
        valid = list(registry.names("model"))
        raise ConfigError(
            f"model={name!r} is unknown; {registry.nearest(name, valid)}"
            f"federated models: {', '.join(valid)}, or set model_class"
        ) from error


def find_compressors(chosen: dict[str, Any]) -> dict[str, tuple[str, type[Compressor]]]:
    """Find name and class for either direction, of the keys chosen.

    Raises
    ------
    ConfigError
        If one is unknown or cannot be imported.
    """
    common, compressors = str(chosen["compressor"]), {}
    for direction in DIRECTIONS:
        key = f"{direction}_compressor"
        path = chosen.get(f"{key}_class")
        name = chosen.get(key) or (path and str(path).rpartition(".")[2])
        if not name:
            key, name = "compressor", common
        if not path and name == common:
            path = chosen.get("compressor_class")
        found = registry.find("compressor", key, str(name), path, Compressor)
        compressors[direction] = str(name), found
    return compressors


def find_item_embedding(chosen: dict[str, Any]) -> type[ItemEmbedding]:
    """Find the class of the keys chosen.

    Raises
    ------
    ConfigError
        If it is unknown or cannot be imported.
    """
    kind, name = "item_embedding", str(chosen["item_embedding"])
    path = chosen.get("item_embedding_class")
    return registry.find(kind, kind, name, path, ItemEmbedding)


def own_keys(kind: str, name: str, found: type, taken: set[str]) -> dict[str, Any]:
    """Return a method's keys: its constructor's parameters, its YAML over them.

    Raises
    ------
    ConfigError
        If a parameter has the name of another key, one of ``taken``.
    """
    parameters = _parameters(kind, found)
    for key in sorted(parameters.keys() & taken):
        raise ConfigError(
            f"{kind}={name!r}: its parameter {key!r} is another key of this run; it "
            "must have another name"
        )
    return parameters | registry.read_properties(kind, name)


def _parameters(kind: str, found: type) -> dict[str, Any]:
    """Return the constructor's parameters that are keys, and their defaults."""
    return dict([*registry.hyper_parameters(found).items()][registry.GIVEN[kind] :])


def _arguments(config: Config, kind: str, name: str, found: type) -> dict[str, Any]:
    """Return the constructor's arguments, which keys of their names hold."""
    keys = _parameters(kind, found).keys()
    for key in sorted(registry.required_parameters(found) & keys):
        if config[key] is None:
            raise ConfigError(f"{key} must be set: {kind}={name!r} has no default")
    return {key: config[key] for key in keys}


def make_model(config: Config, dataset: Any) -> Any:
    """Build the model for a dataset; its own keys are its constructor's parameters.

    Parameters
    ----------
    config : Config
    dataset : recbole.data.dataset.Dataset

    Raises
    ------
    ConfigError
        For a key that must be set.
    """
    return make(config, "model", config.model, config.model_class, config, dataset)


def make(config: Config, kind: str, name: str, found: type[Made], *given: Any) -> Made:
    """Build an object of a kind; its parameters are the keys of their names.

    Parameters
    ----------
    config : Config
    kind, name : str
    found : type
    *given
        Arguments before those of keys.

    Raises
    ------
    ConfigError
        For values that it does not take.
    """
    arguments = _arguments(config, kind, name, found)
    try:
        return found(*given, **arguments)
    except ConfigError:
        raise
    except (ValueError, MemoryError) as error:
        if isinstance(error, ValueError) and not _raised_by(found, error):
            raise  # a bug, of what it calls
        raise ConfigError(f"{kind}={name!r} ({found.__module__}): {error}") from error


def _raised_by(found: type, error: ValueError) -> bool:
    """Whether a class or one of its bases refused what it was given."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    modules = {base.__module__ for base in found.__mro__}
    return frame.f_globals.get("__name__") in modules


def make_compressor(
    config: Config, name: str, compressor_class: type[Compressor]
) -> Compressor:
    """Build a compressor; its parameters are the keys named like its constructor's.

    Raises
    ------
    ConfigError
        For values that it does not take.
    """
    compressor = make(config, "compressor", name, compressor_class)
    if config["bandwidth"] is not None and not compressor.heterogeneous:
        refuse(config, "bandwidth", f"None: {name} needs equal rates")
    return compressor


def make_item_embedding(
    config: Config,
    kind: type[ItemEmbedding],
    n_items: int,
    dim: int,
    source: Floats | None,
) -> ItemEmbedding | None:
    """Build what items are made of; None for a row each without a base.

    Parameters
    ----------
    config : Config
    kind : type
    n_items, dim : int
    source : ndarray of float32, shape (n_items, n), or None
        Their features or warmed-up vectors; without it, what it gives is zero.

    Raises
    ------
    ConfigError
        For values that it does not take.
    """
    base = None
    if config["use_base"]:
        base = torch.from_numpy(_base(config, n_items, dim, source))
    elif kind is Full:
        return None
    of_items = n_items, dim, base, config["seed"]
    name = str(config["item_embedding"])
    embedding = make(config, "item_embedding", name, kind, *of_items)
    if source is not None:
        embedding.validate()
        embedding.fit(source, features=config["item_base"] == "features")
    return embedding


def _base(config: Config, n_items: int, dim: int, source: Floats | None) -> Floats:
    if config["item_base"] == "random":
        rng = generator(config["seed"], Stream.INITIALISATION, 1, 1)  # table: (1,)
        values = rng.standard_normal((n_items, dim)) * float(config["base_std"])
        return values.astype(np.float32)
    if source is None:
        return np.zeros((n_items, dim), np.float32)
    if config["item_base"] == "features":
        return principal_components(source, dim, config["base_std"])
    return source
