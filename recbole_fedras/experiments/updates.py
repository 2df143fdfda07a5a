"""One update of a run: captured while it trains, written and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import trange

from recbole_fedras.compressor import Budget, RoundContext, RowUpdate
from recbole_fedras.compressor.base import empty_update, row_update
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.config import Config
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.quick_start import make_simulation, prepare_data
from recbole_fedras.wire.payload import Payload

Array = NDArray[Any]


class Recorder(NoCompression):
    """Sends everything as it is, and keeps the newest updates that it sent."""

    def __init__(self) -> None:
        self.clients: list[RowUpdate] = []
        self.aggregate = empty_update(0)

    def encode_cohort(
        self, updates: Any, budgets: Sequence[Budget], ctxs: Sequence[RoundContext]
    ) -> list[Payload]:
        """Keep a copy of each client's update."""
        self.clients = [
            RowUpdate(updates[index].ids.clone(), updates[index].rows.clone())
            for index in range(len(updates))
        ]
        return super().encode_cohort(updates, budgets, ctxs)

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Keep the aggregate."""
        self.aggregate = update
        return super().encode_broadcast(update, budgets, ctx)


def capture(config: Config, direction: str, n_rounds: int) -> tuple[RowUpdate, int]:
    """Train without compression; return an update of the last round, and n_items.

    Parameters
    ----------
    direction : {'uplink', 'downlink'}
        The update of the client with the median number of rows, or the aggregate.
    """
    uplink, downlink = Recorder(), Recorder()
    simulation = _without_compression(config, uplink, downlink)
    with torch.no_grad():
        for _ in trange(n_rounds, desc="Capture", unit="round"):
            simulation.run_round()
    n_items = len(simulation.server.item_table)
    if direction == "uplink":
        by_size = sorted(uplink.clients, key=len)
        return by_size[len(by_size) // 2], n_items
    return downlink.aggregate, n_items


def _without_compression(
    config: Config, uplink: Recorder, downlink: Recorder
) -> Simulation:
    train_data, _, _ = prepare_data(config)
    plain = replace(
        config.federation(),
        compression_rates=(0.0,),
        replica="broadcast",
        budget="nominal",
        downlink_feedback=False,
        uplink_feedback=False,
    )
    return make_simulation(config, train_data, Simulation, (uplink, downlink), plain)


def save_update(path: Path, update: RowUpdate, n_items: int) -> None:
    """Write ``ids``, ``rows`` and ``n_items`` as ``.npz``."""
    np.savez(path, ids=update.ids, rows=update.rows, n_items=n_items)


def load_update(path: Path) -> tuple[RowUpdate, int]:
    """Read what :func:`save_update` wrote, or a dense table of changes as ``.npy``.

    Raises
    ------
    ValueError
        If the file holds neither.
    """
    name = f"--update={str(path)!r}"
    try:
        with np.errstate(over="ignore"):
            ids, rows, n_items = _arrays(np.load(path))
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{name} cannot be read: {error}; it must be .npz with ids, rows and "
            "n_items, or .npy with a change of every row"
        ) from error
    if rows.ndim != 2 or ids.ndim != 1 or len(rows) != len(ids):
        raise ValueError(f"{name}: rows of shape {rows.shape}, ids of {ids.shape}")
    if not rows.any() or not np.isfinite(rows).all():
        raise ValueError(f"{name} must hold finite float32 rows, some not zero")
    if ids.dtype.kind not in "iu" or ids[0] < 0 or ids[-1] >= n_items:
        raise ValueError(f"{name}: ids must be integers from 0 to {n_items - 1}")
    if (np.diff(ids.astype(np.int64)) <= 0).any():
        raise ValueError(f"{name}: ids must increase")
    return row_update(ids, rows), n_items


def _arrays(data: Any) -> tuple[Array, Array, int]:
    """Return ids, rows and the number of items of what a file holds."""
    if isinstance(data, np.ndarray):
        table = np.atleast_1d(data)
        ids = np.flatnonzero(table.any(axis=-1))
        return ids, table[ids].astype(np.float32), len(table)
    return data["ids"], data["rows"].astype(np.float32), int(data["n_items"])
