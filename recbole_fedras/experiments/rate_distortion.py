"""Rate-distortion: what each compressor makes of one update, at equal bytes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
import plotly.graph_objects as go
import torch
from tabulate import tabulate
from tqdm import tqdm, trange

from recbole_fedras.compressor import Compressor, RoundContext, RowUpdate
from recbole_fedras.compressor.base import SERVER, empty_update, row_update
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.config import Config, registry
from recbole_fedras.errors import BudgetError, ConfigError, DataError
from recbole_fedras.federation.budgets import hold_to, wire_budget
from recbole_fedras.federation.server.broadcast import Broadcast
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.federation.transforms import SharedUpdate, Transform
from recbole_fedras.quick_start import make_simulation, prepare_data
from recbole_fedras.wire.message import Header, Kind, Message

RATES = (0.5, 0.75, 0.875, 0.9375, 0.96875, 0.984375)

#: Settings that are methods of their own, besides each compressor as configured.
VARIANTS = {
    "FedRAS": [{"actions": "int8"}, {"actions": "shape"}],
    "TopK": [{"topk_scope": "global"}],
}


@dataclass(frozen=True, slots=True)
class Point:
    """One compressor at one rate.

    Attributes
    ----------
    method : str
    rate : float
        ``1 - bytes allowed / bytes of the dense table``; None for ``none``.
    bytes_per_item : float
        Bytes of the whole message over the items of the table.
    error : float
        ``|decoded - update|^2 / |update|^2``.
    ids_share, framing_share : float
        Of the message: ids and indices; names, shapes and lengths.
    """

    method: str
    rate: float | None
    bytes_per_item: float
    error: float
    ids_share: float
    framing_share: float


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
    train_data, _, _ = prepare_data(config)
    recorder = Recorder()
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
        downlink_feedback=False,
        uplink_feedback=False,
    )
    simulation = make_simulation(config, train_data, Simulation, methods, plain)
    for _ in trange(n_rounds, desc="Capture", unit="round"):
        simulation.run_round()
    n_items = len(simulation.server.parameters.item_table)
    if direction == "uplink":
        (on_clients,) = simulation.shard.methods.transforms
        by_size = sorted(cast(Recorder, on_clients).clients, key=len)
        return by_size[len(by_size) // 2], n_items
    return recorder.aggregate, n_items


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
        data = np.load(path)
        if isinstance(data, np.ndarray):
            table = np.atleast_1d(data)
            ids = np.flatnonzero(table.any(axis=-1))
            rows, n_items = table[ids], len(table)
        else:
            ids, rows, n_items = data["ids"], data["rows"], int(data["n_items"])
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
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


def methods(config: Config) -> dict[str, Compressor]:
    """Build every registered compressor and those configured, and variants.

    Parameters are as configured.
    """
    shipped: dict[str, type[Compressor]] = {}
    for name in registry.names("compressor"):
        path = registry.read_properties("compressor", name)["compressor_class"]
        shipped[name] = registry.load_class("compressor_class", path, Compressor)
    built: dict[str, Compressor] = {}
    for name, found in (shipped | dict(config.compressors.values())).items():
        if found.cuts is not None or found.needs_base:
            continue  # on one update the same as none, as FedRAS
        defaults = registry.hyper_parameters(found)
        defaults |= registry.read_properties("compressor", name)
        defaults |= config.external_config_dict
        keys = {key: defaults[key] for key in registry.hyper_parameters(found)}
        built[name] = found(**keys)
        for variant in VARIANTS.get(name, []) if found is shipped.get(name) else []:
            built[f"{name} {', '.join(variant.values())}"] = found(**keys | variant)
    return built


def measure(
    compressors: dict[str, Compressor],
    update: RowUpdate,
    n_items: int,
    direction: str,
    rates: Sequence[float],
) -> list[Point]:
    """Encode within each budget of all bytes, and decode what was sent.

    A method that cannot work at a rate has no point there.
    """
    dim = update.rows.shape[1]
    sender = SERVER if direction == "downlink" else 0
    ctx = RoundContext(0, 0, n_items, dim, sender)
    energy = float(update.rows.double().square().sum())
    points: list[Point] = []
    for method, compressor in tqdm(compressors.items(), unit="method"):
        exact = compressor.lossless
        for rate in rates[:1] if exact else rates:
            try:
                budget = wire_budget(n_items, dim, rate, 0)
                compressor.validate(budget)
            except BudgetError:
                continue
            if direction == "downlink":
                payload = compressor.encode_broadcast(update, [budget], ctx)[0]
            else:
                payload = compressor.encode(update, budget, ctx)
            hold_to(budget, payload, compressor)
            message = Message.of(payload, Header(Kind.DOWNLINK, 1, 0, 1, 0))
            decoded = compressor.decode(message.payload, ctx)
            missed = torch.zeros(n_items, dim, dtype=torch.float64)
            missed[update.ids] = update.rows.double()
            missed[decoded.ids] -= decoded.rows.double()
            parts, size = message.part_bytes(), len(message)
            points.append(
                Point(
                    method,
                    None if exact else rate,
                    size / n_items,
                    float(missed.square().sum()) / energy,
                    parts["ids"] / size,
                    parts["framing"] / size,
                )
            )
    return points


def table(points: Sequence[Point]) -> str:
    """Render points for the terminal, those of a rate together, best first."""
    rows = [
        (
            "" if point.rate is None else f"{point.rate:.4%}",
            point.method,
            f"{point.bytes_per_item:.2f}",
            f"{point.error:.2e}",
            f"{point.ids_share:.1%}",
            f"{point.framing_share:.1%}",
        )
        for point in sorted(points, key=lambda own: (own.rate or 0, own.error))
    ]
    headers = ("CR allowed", "method", "bytes/item", "error", "ids", "framing")
    return str(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def plot(points: Sequence[Point], title: str) -> go.Figure:
    """Draw error against bytes per item, both logarithmic; a line for each method."""
    figure = go.Figure()
    for method in dict.fromkeys(point.method for point in points):
        own = [point for point in points if point.method == method]
        figure.add_scatter(
            x=[point.bytes_per_item for point in own],
            y=[max(point.error, 1e-12) for point in own],
            name=method,
            mode="lines+markers",
            customdata=[point.ids_share for point in own],
            hovertemplate="%{x:.2f} bytes/item, error %{y:.2e}, ids %{customdata:.1%}",
        )
    figure.update_layout(
        title=title,
        xaxis={"type": "log", "title": "bytes per item, everything counted"},
        yaxis={"type": "log", "title": "squared error / energy of the update"},
        template="plotly_white",
    )
    return figure


def run_rate_distortion(
    config: Config,
    update_file: str | None,
    direction: str,
    n_rounds: int,
    rates: Sequence[float],
    output: str,
) -> list[Point]:
    """Capture or read an update, measure, and write table, plot and update.

    Raises
    ------
    ConfigError, DataError
        For input that cannot work, before any work.
    """
    if direction not in ("uplink", "downlink"):
        raise ConfigError(f"--direction={direction!r} must be uplink or downlink")
    if not rates or not all(0 <= rate < 1 for rate in rates):
        raise ConfigError(f"--rates={list(rates)} must lie in [0, 1)")
    if n_rounds < 1:
        raise ConfigError(f"--rounds={n_rounds} must be at least 1")
    folder, compressors = Path(output), methods(config)
    if update_file is None:
        update, n_items = capture(config, direction, n_rounds)
        source = f"{config['dataset']}, seed {config['seed']}, round {n_rounds}"
    else:
        update, n_items = load_update(Path(update_file))
        source = update_file
    points = measure(compressors, update, n_items, direction, sorted(rates))
    folder.mkdir(parents=True, exist_ok=True)
    save_update(folder / "update.npz", update, n_items)
    fields = list(Point.__slots__)
    with (folder / "points.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        writer.writerows([getattr(point, name) for name in fields] for point in points)
    title = (
        f"{direction} of {source}: {len(update):,} of {n_items:,} items x "
        f"{update.rows.shape[1]}"
    )
    plot(points, title).write_html(folder / "rate_distortion.html")
    print(title)
    print(table(points))
    print(f"Update, points and plot (rate_distortion.html) are in {folder}")
    return points
