"""The key ``cut``: what is left of a run that does less instead of compressing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recbole_fedras.compressor.base import Compressor, kept
from recbole_fedras.config import registry
from recbole_fedras.config.forms import one_of
from recbole_fedras.config.values import read, refuse

if TYPE_CHECKING:
    from recbole_fedras.config.config import Config

#: Keys that the compression rate may cut.
CUTS = ("embedding_size", "epochs", "client_fraction")


def cut(config: Config) -> dict[str, Any]:
    """Return the key that is cut, and what depends on it, as they are after it.

    Raises
    ------
    ConfigError
        If a compressor is to meet the same rate, or this model cannot be cut.
    """
    key = config["cut"]
    for name, (found, its_key) in _compressors(config).items():
        if its_key not in (None, key):
            refuse(config, "cut", f"{its_key}, which {name} stands for")
        if key is not None and not found.lossless:
            refuse(config, "cut", f"~ with {name}, or compressor must be none")
    if key is None:
        return {}
    if config["bandwidth"] is not None:
        refuse(config, "bandwidth", f"None with cut={key}, which is cut for all")
    left = kept(config["compression_rate"])
    if read(config, "cut", one_of(*CUTS)) == "epochs":
        return _cut_rounds(config, max(1, int(config[key] * left)))
    if key == "client_fraction":
        return {key: config[key] * (1 - config["compression_rate"])}
    return {key: _cut_dim(config, left)}


def _compressors(config: Config) -> dict[str, tuple[type[Compressor], str | None]]:
    """Return classes by name, and the key that each name comes with the cut of."""
    named = {
        name: (found, registry.read_properties("compressor", name).get("cut"))
        for name, found in config.compressors.values()
    }
    if len(named) > 1 and any(key for _, key in named.values()):
        allowed = f"one that serves both ways, not {' and '.join(named)}"
        refuse(config, "compressor", allowed)
    return named


def _cut_rounds(config: Config, epochs: int) -> dict[str, Any]:
    """Cut rounds, and evaluate as often as lets the last one be evaluated."""
    step = min(config["eval_step"], epochs)
    while step and epochs % step:
        step -= 1
    return {"epochs": epochs, "eval_step": step}


def _cut_dim(config: Config, left: float) -> int:
    key = "embedding_size"
    if not config.model_class.resizable:
        allowed = f"another key, as it cannot cut the parts of model={config.model}"
        refuse(config, "cut", allowed)
    bits = config.compressors["uplink"][1].value_bits
    embedding = config.make_item_embedding(1, config[key])
    if embedding is not None and embedding.width != config[key]:
        refuse(config, "item_embedding", f"one that cut={key} can cut, as full or hash")
    return max(1, int(config[key] * left * 32 / bits))
