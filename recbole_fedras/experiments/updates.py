"""One update of a run: captured while it trains, written and read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tqdm import trange

from recbole_fedras.compressor import RoundContext, RowUpdate
from recbole_fedras.compressor.base import empty_update, row_update
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.config import Config
from recbole_fedras.errors import DataError
from recbole_fedras.federation.server.broadcast import Broadcast
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.federation.transforms import SharedUpdate, Transform
from recbole_fedras.run.setup import make_simulation, prepare_data

Array = NDArray[Any]


class Recorder(Transform):
    """Keeps the newest round's updates, and changes nothing."""

    def __init__(self) -> None:
        self.round = -1
        self.clients: list[RowUpdate] = []
        self.aggregate = empty_update(0)

    def on_client(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Keep a copy of a client's update."""
        if ctx.round != self.round:
            self.round, self.clients = ctx.round, []
        items = update.items
        self.clients.append(RowUpdate(items.ids.clone(), items.rows.clone()))
        return update

    def on_aggregate(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Keep the aggregate."""
        self.aggregate = update.items
        return update


def capture(config: Config, direction: str, n_rounds: int) -> tuple[RowUpdate, int]:
    """Train without compression; return an update of the last round, and n_items.

    Parameters
    ----------
    direction : {'uplink', 'downlink'}
        The update of the client with the median number of rows, or the aggregate.
    """
    recorder = Recorder()
    simulation = _without_compression(config, recorder)
    for _ in trange(n_rounds, desc="Capture", unit="round"):
        simulation.run_round()
    n_items = len(simulation.server.parameters.item_table)
    if direction == "uplink":
        (on_clients,) = simulation.shard.methods.transforms
        by_size = sorted(cast(Recorder, on_clients).clients, key=len)
        return by_size[len(by_size) // 2], n_items
    return recorder.aggregate, n_items


def _without_compression(config: Config, recorder: Recorder) -> Simulation:
    train_data, _, _ = prepare_data(config)
    methods = replace(
        config.make_methods(),
        uplink=NoCompression(),
        downlink=NoCompression(),
        policy=Broadcast,
        transforms=(recorder,),
    )
    plain = replace(
        config.federation(),
        compression_rates=(0.0,),
        replica="broadcast",
        budget="nominal",
        uplink_share=0.5,
        compress_network=False,
        downlink_feedback=False,
        uplink_feedback=False,
    )
    return make_simulation(config, train_data, Simulation, methods, plain)


def save_update(path: Path, update: RowUpdate, n_items: int) -> None:
    """Write ``ids``, ``rows`` and ``n_items`` as ``.npz``."""
    np.savez(path, ids=update.ids, rows=update.rows, n_items=n_items)


def load_update(path: Path) -> tuple[RowUpdate, int]:
    """Read what :func:`save_update` wrote, or a dense table of changes as ``.npy``.

    Raises
    ------
    DataError
        If the file holds neither.
    """
    name = f"--update={str(path)!r}"
    try:
        with np.errstate(over="ignore"):
            ids, rows, n_items = _arrays(np.load(path))
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{name} cannot be read: {error}; it must be .npz with ids, rows and "
            "n_items, or .npy with a change of every row"
        ) from error
    if rows.ndim != 2 or ids.ndim != 1 or len(rows) != len(ids):
        raise DataError(f"{name}: rows of shape {rows.shape}, ids of {ids.shape}")
    if not rows.any() or not np.isfinite(rows).all():
        raise DataError(f"{name} must hold finite float32 rows, some not zero")
    if ids.dtype.kind not in "iu" or ids[0] < 0 or ids[-1] >= n_items:
        raise DataError(f"{name}: ids must be integers from 0 to {n_items - 1}")
    if (np.diff(ids.astype(np.int64)) <= 0).any():
        raise DataError(f"{name}: ids must increase")
    return row_update(ids, rows), n_items


def _arrays(data: Any) -> tuple[Array, Array, int]:
    """Return ids, rows and the number of items of what a file holds."""
    if isinstance(data, np.ndarray):
        table = np.atleast_1d(data)
        ids = np.flatnonzero(table.any(axis=-1))
        return ids, table[ids].astype(np.float32), len(table)
    return data["ids"], data["rows"].astype(np.float32), int(data["n_items"])
