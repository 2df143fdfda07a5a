"""Rate-distortion: what each compressor makes of one update, at equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from recbole_fedras.compressor import Budget, Compressor, RoundContext, RowUpdate
from recbole_fedras.compressor.base import SERVER
from recbole_fedras.config import Config, registry
from recbole_fedras.errors import BudgetError, ConfigError
from recbole_fedras.experiments.failures import reason_of
from recbole_fedras.experiments.figures import draw_distortion
from recbole_fedras.experiments.panels import save
from recbole_fedras.experiments.tables import Table
from recbole_fedras.experiments.updates import capture, load_update, save_update
from recbole_fedras.federation.budgets import hold_to, wire_budget
from recbole_fedras.run.stages import tell
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


def methods(config: Config) -> dict[str, Compressor]:
    """Build every registered compressor and those configured, and variants.

    Parameters are as configured.
    """
    shipped = _shipped()
    built: dict[str, Compressor] = {}
    for name, found in (shipped | dict(config.compressors.values())).items():
        if found.needs_base:
            continue  # on one update the same as FedRAS
        defaults = registry.hyper_parameters(found)
        defaults |= registry.read_properties("compressor", name)
        defaults |= config.external_config_dict
        keys = {key: defaults[key] for key in registry.hyper_parameters(found)}
        built[name] = found(**keys)
        for variant in VARIANTS.get(name, []) if found is shipped.get(name) else []:
            built[f"{name} {', '.join(variant.values())}"] = found(**keys | variant)
    return built


def _shipped() -> dict[str, type[Compressor]]:
    return {
        name: registry.load_class("compressor_class", path, Compressor)
        for name, path in registry.shipped("compressor").items()
    }


class Gap(NamedTuple):
    """One compressor that has no point at a rate.

    Attributes
    ----------
    method : str
    rate : float
    reason : str
    failed : bool
        Whether it failed; else it has refused the rate.
    """

    method: str
    rate: float
    reason: str
    failed: bool


def measure(
    compressors: dict[str, Compressor],
    update: RowUpdate,
    n_items: int,
    direction: str,
    rates: Sequence[float],
) -> tuple[list[Point], list[Gap]]:
    """Encode within each budget of all bytes, and decode what was sent.

    One method's failure leaves the others alone: it is a gap.
    """
    dim = update.rows.shape[1]
    ctx = RoundContext(0, 0, n_items, dim, SERVER if direction == "downlink" else 0)
    points: list[Point] = []
    gaps: list[Gap] = []
    for method, compressor in tqdm(compressors.items(), unit="method"):
        for rate in rates if compressor.obeys_rate() else rates[:1]:
            try:
                if refusal := _refusal(compressor, n_items, dim, rate):
                    gaps.append(Gap(method, rate, refusal, False))
                    continue
                budget = wire_budget(n_items, dim, 0, rate, network=0)
                points.append(_measured(method, compressor, update, budget, ctx))
            except Exception as error:  # whatever a class of the user's own raises
                gaps.append(Gap(method, rate, reason_of(error), True))
                break
    return points, gaps


def _refusal(compressor: Compressor, n_items: int, dim: int, rate: float) -> str:
    """Say why a method cannot work within a rate of all bytes; empty: it can."""
    try:
        compressor.validate(wire_budget(n_items, dim, 0, rate, network=0))
    except BudgetError as error:
        return str(error)
    return ""


def _measured(
    method: str,
    compressor: Compressor,
    update: RowUpdate,
    budget: Budget,
    ctx: RoundContext,
) -> Point:
    message = _sent(compressor, update, budget, ctx)
    error = _error(update, compressor.decode(message.payload, ctx), ctx)
    asked = budget.compression_rate if compressor.obeys_rate() else None
    return _point(method, asked, message, error, ctx.n_items)


def _sent(
    compressor: Compressor, update: RowUpdate, budget: Budget, ctx: RoundContext
) -> Message:
    """Encode as server or client, and read the bytes as who receives them."""
    if ctx.sender == SERVER:
        payload = compressor.encode_broadcast(update, [budget], ctx)[0]
    else:
        payload = compressor.encode(update, budget, ctx)
    hold_to(budget, payload, compressor)
    return Message.of(payload, Header(Kind.DOWNLINK, 1, 0, 1, 0))


def _error(update: RowUpdate, decoded: RowUpdate, ctx: RoundContext) -> float:
    missed = torch.zeros(ctx.n_items, ctx.dim, dtype=torch.float64)
    missed[update.ids] = update.rows.double()
    energy = float(missed.square().sum())
    missed[decoded.ids] -= decoded.rows.double()
    return float(missed.square().sum()) / energy


def _point(
    method: str, rate: float | None, message: Message, error: float, n_items: int
) -> Point:
    parts, size = message.part_bytes(), len(message)
    shares = (parts["ids"] / size, parts["framing"] / size)
    return Point(method, rate, size / n_items, error, *shares)


def table(points: Sequence[Point], gaps: Sequence[Gap], title: str) -> Table:
    """Put points of a rate together, best first, and failures last."""
    failures = [gap for gap in gaps if gap.failed]
    rows: list[dict[str, Any]] = [
        {
            "CR allowed": point.rate,
            "method": point.method,
            "bytes/item": point.bytes_per_item,
            "error": point.error,
            "ids": point.ids_share,
            "framing": point.framing_share,
            "failed": "",
        }
        for point in sorted(points, key=lambda point: (point.rate or 0, point.error))
    ]
    rows += [
        dict.fromkeys(rows[0])
        | {"CR allowed": gap.rate, "method": gap.method, "failed": gap.reason}
        for gap in failures
    ]
    refused = ", ".join(
        f"{gap.method} ({gap.rate:.2%})" for gap in gaps if not gap.failed
    )
    return Table(title, rows, f"Too few bytes for {refused}." if refused else "")


def run_rate_distortion(
    config: Config,
    update_file: str | None,
    direction: str,
    n_rounds: int,
    rates: Sequence[float],
    output: str,
) -> Table:
    """Capture or read an update, measure, and write points, plot and update.

    Returns
    -------
    Table
        To be shown.

    Raises
    ------
    ConfigError, DataError
        For input that cannot work, before any work.
    BudgetError
        If no compressor has a point.
    """
    _check(direction, n_rounds, rates)
    folder, compressors = Path(output), methods(config)
    if update_file is None:
        update, n_items = capture(config, direction, n_rounds)
        run = config.run_settings()
        source = f"{run.dataset}, seed {run.seed}, round {n_rounds}"
    else:
        update, n_items = load_update(Path(update_file))
        source = update_file
    points, gaps = measure(compressors, update, n_items, direction, sorted(rates))
    if not points:
        reasons = "; ".join(f"{gap.method}: {gap.reason}" for gap in gaps)
        raise BudgetError(f"no compressor has a point: {reasons}")
    folder.mkdir(parents=True, exist_ok=True)
    save_update(folder / "update.npz", update, n_items)
    title = (
        f"{direction} of {source}: {len(update):,} of {n_items:,} items x "
        f"{update.rows.shape[1]}"
    )
    rows = [asdict(point) for point in points]
    (folder / "points.csv").write_text(Table(title, rows).csv(), encoding="utf-8")
    save(draw_distortion(rows, title), folder / "rate_distortion.png")
    tell(f"update, points and plot (rate_distortion.png) are in {folder}")
    return table(points, gaps, title)


def _check(direction: str, n_rounds: int, rates: Sequence[float]) -> None:
    if direction not in ("uplink", "downlink"):
        raise ConfigError(f"--direction={direction!r} must be uplink or downlink")
    if not rates or not all(0 <= rate < 1 for rate in rates):
        raise ConfigError(f"--rates={list(rates)} must lie in [0, 1)")
    if n_rounds < 1:
        raise ConfigError(f"--rounds={n_rounds} must be at least 1")
