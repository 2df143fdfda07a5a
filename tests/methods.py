"""Every registered compressor, and updates that the tests compress."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from conftest import CTX, DIM, N_ITEMS, budget

from recbole_fedras.compressor import Compressor, RowUpdate
from recbole_fedras.compressor.base import Budget
from recbole_fedras.config import registry
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload

SHIPPED = registry.shipped("compressor")
NAMES = [name for name in SHIPPED if name != "BinaryCodes"]  # not of real numbers
VARIANTS = [
    *((name, {}) for name in NAMES),
    ("TopK", {"topk_scope": "global"}),
    ("FedRAS", {"clustering": "fixed"}),
    ("FedRAS", {"kmeans": "sklearn"}),
    ("FedRAS", {"actions": "int8"}),
    ("FedRAS", {"actions": "shape"}),
]

OF_UPDATES = [variant for variant in VARIANTS if variant[0] != "CE"]  # not of tables


def make(name: str, **keys) -> Compressor:
    return registry.load_class("compressor_class", SHIPPED[name], Compressor)(**keys)


def table(update: RowUpdate) -> torch.Tensor:
    dense = torch.zeros(N_ITEMS, DIM)
    dense[update.ids] = update.rows
    return dense


def compatible(name: str, update: RowUpdate, rate: float) -> RowUpdate:
    """CoLR's clients only ever hold updates in the span of its basis."""
    if name != "CoLR":
        return update
    mapping = make(name).gradient_map(budget(rate), CTX)
    return RowUpdate(update.ids, update.rows @ mapping)


LARGE = Budget(2000, 16, 0.9375)
LARGE_CTX = replace(CTX, n_items=2000, dim=16, base=torch.zeros(2000, 16))


def large_update(n: int = 1900, decay: float = 0.8) -> RowUpdate:
    """Rows of unequal norms whose spectrum decays."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, 16)) * decay ** np.arange(16)
    rows = rows * rng.lognormal(0, 1, (n, 1))
    rotation, _ = np.linalg.qr(rng.standard_normal((16, 16)))
    ids = np.sort(rng.choice(2000, n, replace=False))
    return RowUpdate(torch.from_numpy(ids), torch.from_numpy(rows @ rotation).float())


def sent(payload: Payload) -> Message:
    """Return the message of a payload, as its receiver parses it."""
    header = Header(Kind.DOWNLINK, 1, 0, 1, 0)
    return Message.from_bytes(Message.of(payload, header).data)
