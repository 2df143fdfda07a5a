"""The contract of a compressor, to hold one of your own to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from recbole_fedras.compressor.base import (
    SERVER,
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    row_update,
)
from recbole_fedras.wire.payload import Message, Payload

_N_ITEMS, _DIM, _RATE = 300, 16, 0.75
_NOMINAL = Budget(_N_ITEMS, _DIM, _RATE)
_WIRE = Budget(_N_ITEMS, _DIM, _RATE, int(4 * _N_ITEMS * _DIM * (1 - _RATE)))


def check_compressor(make: Callable[[], Compressor]) -> None:
    """Check that a compressor keeps its contract, as ``check_estimator`` does.

    Updates of no row, of some and of all rows of a table are sent both ways, at a rate
    of values and of all bytes:

    - encoding leaves the update as it is, and the same seed gives the same bytes;
    - ``encode``, which serves all clients, remembers nothing; what
      ``encode_broadcast`` remembers is what ``state_dict`` returns;
    - another object decodes the bytes received, to rows of the update, increasing;
    - where all bytes are budgeted, the payload takes no more, or ``validate`` refuses.

    Parameters
    ----------
    make : callable
        Returns a new object: the class, or a function that sets its parameters.

    Raises
    ------
    AssertionError
        With what is broken, where.
    """
    for budget in (_NOMINAL, _WIRE):
        try:
            make().validate(budget)
        except ValueError:
            if budget is _NOMINAL:
                raise
            continue
        for n in (0, 1, 40, _N_ITEMS - 1, _N_ITEMS):
            for sender in (0, SERVER):
                _check(make, _update(n), budget, _context(n, sender))


def _check(
    make: Callable[[], Compressor], update: RowUpdate, budget: Budget, ctx: RoundContext
) -> None:
    sent = make()
    way = "encode" if ctx.sender != SERVER else "encode_broadcast"
    counted = "values" if budget.n_bytes is None else "bytes"
    where = f"{type(sent).__name__}.{way} of {len(update)} rows, rate of {counted}"
    require = partial(_require, where)

    before = update.ids.clone(), update.rows.clone()
    payload = _encode(sent, update, budget, ctx)
    unchanged = torch.equal(update.ids, before[0]), torch.equal(update.rows, before[1])
    require(all(unchanged), "the update was changed")
    require(
        _encode(make(), update, budget, ctx).to_bytes() == payload.to_bytes(),
        "the same seed gave other bytes: draw from ctx.generator()",
    )
    if budget.n_bytes is not None and not sent.lossless:
        size = len(payload.to_bytes())
        require(size <= budget.n_bytes, f"{size} bytes, of {budget.n_bytes}")

    restored = make()
    if ctx.sender == SERVER:
        restored.load_state_dict(sent.state_dict())
    require(
        _encode(sent, update, budget, ctx).to_bytes()
        == _encode(restored, update, budget, ctx).to_bytes(),
        "what it remembers is not all in state_dict()"
        if ctx.sender == SERVER
        else "it remembers other updates, but serves all clients",
    )

    message = Message(Message.of(payload, 1, 0).data)
    decoded = make().decode(message.payload, ctx)
    ids, rows = decoded.ids, decoded.rows
    require(ids.dtype == torch.int64 and not ids.is_cuda, "ids must be int64, on CPU")
    require(bool((ids.diff() > 0).all()), "ids must increase")
    known = set(update.ids.tolist())
    require(set(ids.tolist()) <= known, "decode returned rows that were not sent")
    require(rows.dtype == torch.float32, f"rows must be float32, not {rows.dtype}")
    shape = (len(ids), _DIM)
    require(rows.shape == shape, f"rows of shape {tuple(rows.shape)}, not {shape}")
    require(bool(rows.isfinite().all()), "a row is not finite")


def _encode(
    compressor: Compressor, update: RowUpdate, budget: Budget, ctx: RoundContext
) -> Payload:
    if ctx.sender == SERVER:
        return compressor.encode_broadcast(update, [budget], ctx)[0]
    return compressor.encode(update, budget, ctx)


def _require(where: str, kept: bool, what: str) -> None:
    if not kept:
        raise AssertionError(f"{where}: {what}")


def _update(n: int) -> RowUpdate:
    """Rows of unequal norms."""
    rng = np.random.default_rng(n)
    ids = np.sort(rng.choice(_N_ITEMS, n, replace=False))
    rows = rng.standard_normal((n, _DIM)) * rng.lognormal(0, 1, (n, 1))
    return row_update(ids, rows.astype(np.float32))


def _context(n: int, sender: int) -> RoundContext:
    base = torch.from_numpy(np.random.default_rng(0).random((_N_ITEMS, _DIM)))
    return RoundContext(n, 7, _N_ITEMS, _DIM, sender, base=base.float())
