"""Methods that meet the compression rate by doing less: what is left of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recbole_fedras.compressor.base import kept
from recbole_fedras.config.values import refuse

if TYPE_CHECKING:
    from recbole_fedras.config.config import Config


def cut(config: Config) -> dict[str, Any]:
    """Return the keys that the compressors chosen cut, as they are after it.

    Raises
    ------
    ConfigError
        If one that cuts is chosen for one way only, or cannot cut this model.
    """
    cuts = {compressor.cuts for _, compressor in config.compressors.values()}
    key = cuts.pop()
    if cuts:
        name = config.method.replace("+", " and ")
        refuse(config, "compressor", f"one that serves both ways, not {name}")
    if key is None:
        return {}
    if config["bandwidth"] is not None:
        refuse(config, "bandwidth", f"None: {config.method} cuts {key} for all")
    left = kept(config["compression_rate"])
    if key == "epochs":
        return _cut_rounds(config, max(1, int(config[key] * left)))
    if key == "client_fraction":
        return {key: config[key] * (1 - config["compression_rate"])}
    return {key: _cut_dim(config, key, left)}


def _cut_rounds(config: Config, epochs: int) -> dict[str, Any]:
    """Cut rounds, and evaluate as often as lets the last one be evaluated."""
    step = min(config["eval_step"], epochs)
    while step and epochs % step:
        step -= 1
    return {"epochs": epochs, "eval_step": step}


def _cut_dim(config: Config, key: str, left: float) -> int:
    if not config.model_class.resizable:
        allowed = f"another: {config.method} cannot cut the parts of {config.model}"
        refuse(config, "compressor", allowed)
    bits = config.compressors["uplink"][1].value_bits
    embedding = config.make_item_embedding(1, config[key])
    if embedding is not None and embedding.width != config[key]:
        refuse(config, "item_embedding", f"one that {config.method} can cut")
    return max(1, int(config[key] * left * 32 / bits))
