"""recbole-fedras: RecBole trains federatedly, with a compressor chosen by config."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recbole_fedras.version import __version__

if TYPE_CHECKING:
    from recbole_fedras.beyond.updates import (
        ErrorFeedback,
        Occasion,
        compress_update,
        decompress_update,
    )
    from recbole_fedras.compressor import (
        Budget,
        Compressor,
        RoundContext,
        RowUpdate,
        check_compressor,
    )
    from recbole_fedras.config import Config
    from recbole_fedras.embedding import ItemEmbedding
    from recbole_fedras.federation.attacks.base import Attack
    from recbole_fedras.federation.server.aggregation import Aggregator
    from recbole_fedras.federation.simulation import Simulation
    from recbole_fedras.federation.transforms import Transform
    from recbole_fedras.federation.world.base import World
    from recbole_fedras.model import FederatedRecommender
    from recbole_fedras.quick_start import run_recbole_fedras
    from recbole_fedras.run.finished import load_run
    from recbole_fedras.wire.payload import Layout, Payload

#: Where each public name is from: nothing is imported before it is asked for.
_MODULES = {
    "Aggregator": "federation.server.aggregation",
    "Attack": "federation.attacks.base",
    "Budget": "compressor",
    "Compressor": "compressor",
    "Config": "config",
    "ErrorFeedback": "beyond.updates",
    "FederatedRecommender": "model",
    "ItemEmbedding": "embedding",
    "Layout": "wire.payload",
    "Occasion": "beyond.updates",
    "Payload": "wire.payload",
    "RoundContext": "compressor",
    "RowUpdate": "compressor",
    "Simulation": "federation.simulation",
    "Transform": "federation.transforms",
    "World": "federation.world.base",
    "check_compressor": "compressor",
    "compress_update": "beyond.updates",
    "decompress_update": "beyond.updates",
    "load_run": "run.finished",
    "run_recbole_fedras": "quick_start",
}

__all__ = [
    "Aggregator", "Attack", "Budget", "Compressor", "Config", "ErrorFeedback",
    "FederatedRecommender", "ItemEmbedding", "Layout", "Occasion", "Payload",
    "RoundContext", "RowUpdate", "Simulation", "Transform", "World", "__version__",
    "check_compressor", "compress_update", "decompress_update", "load_run",
    "run_recbole_fedras",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
