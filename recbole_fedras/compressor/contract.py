"""The contract of a compressor, for checking one that you wrote."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from recbole_fedras.compressor.base import (
    REAL,
    SERVER,
    Budget,
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
    row_update,
)
from recbole_fedras.wire.payload import Payload

_GENEROUS = 0.1  # a rate so low that whatever works keeps some of an update


def check_compressor(
    make: Callable[[], Compressor],
    n_items: int = 300,
    dim: int = 16,
    compression_rate: float = 0.75,
) -> None:
    """Check that a compressor keeps its contract, as ``check_estimator`` does.

    Updates of no row, of some and of all rows of a table are sent both ways, at a rate
    of values and of all bytes:

    - encoding leaves the update as it is, and the same seed gives the same bytes;
    - ``encode``, which serves all clients, remembers nothing, and ``encode_cohort``
      does the same as it; what ``encode_broadcast`` remembers, ``state_dict`` returns:
      plain types and tensors, copies;
    - another object decodes the bytes received, to rows of the update, increasing; at a
      low rate something of the update is left, all of it if ``lossless``;
    - if it is ``linear``, payloads of two clients add up to one of their sum;
    - where all bytes are budgeted, the payload takes no more, or ``validate`` refuses;
      one of a ``fixed_rate`` is the same at another rate.

    It is silent if all of this is so.

    Parameters
    ----------
    make : callable
        Returns a new object: the class, or a function that sets its parameters.
    n_items, dim : int
        Shape of the table.
    compression_rate : float
        One that the method can meet.

    Raises
    ------
    AssertionError
        With what is broken, where.
    ValueError
        If the method refuses the rate.

    Warns
    -----
    UserWarning
        If it refuses the rate of all bytes, so that it is not checked at that.

    Examples
    --------
    >>> from recbole_fedras.compressor.svd import SVD
    >>> check_compressor(SVD)
    """
    nominal = Budget(n_items, dim, compression_rate)
    n_bytes = int(4 * n_items * dim * (1 - compression_rate))
    make().validate(nominal)
    budgets = [nominal]
    try:
        make().validate(replace(nominal, n_bytes=n_bytes))
        budgets.append(replace(nominal, n_bytes=n_bytes))
    except ValueError as refused:
        warnings.warn(f"not checked with budget=wire: {refused}", stacklevel=2)
    for budget in budgets:
        for n in (0, 1, n_items // 8, n_items - 1, n_items):
            for sender in (0, SERVER):
                _Check(make, budget, n, sender).run()
        _Check(make, budget, n_items // 8, 0).cohort()
    generous = replace(nominal, compression_rate=_GENEROUS)
    for sender in (0, SERVER):
        _Check(make, generous, n_items, sender).fidelity()
    if make().linear:
        _Check(make, nominal, n_items, 0).adds_up()
    if make().fixed_rate:
        _Check(make, nominal, n_items, 0).is_fixed()
    if make().deterministic:
        _Check(make, nominal, n_items, 0).same_for_all()


class _Check:
    """One update of n rows, from a sender, within a budget."""

    def __init__(
        self, make: Callable[[], Compressor], budget: Budget, n: int, sender: int
    ) -> None:
        self._make = make
        self._budget = budget
        self._sender = sender
        self._update = self._update_of(n, seed=0)
        base = None
        if make().needs_base:
            values = np.random.default_rng(0).random((budget.n_items, budget.dim))
            base = torch.from_numpy(values).float()
        self._ctx = RoundContext(3, 7, budget.n_items, budget.dim, sender, base=base)
        way = "encode_broadcast" if sender == SERVER else "encode"
        counted = "values" if budget.n_bytes is None else "bytes"
        self._where = (
            f"{type(make()).__name__}.{way} of {n} rows, a rate of "
            f"{budget.compression_rate} of {counted}"
        )

    def run(self) -> None:
        """Check one message, and the next."""
        sent, update = self._make(), self._update
        before = RowUpdate(update.ids.clone(), update.rows.clone())
        with self._naming():
            payload = self._encode(sent, update)
            same = self._encode(self._make(), update).to_bytes() == payload.to_bytes()
        kept = (
            torch.equal(update.ids, before.ids),
            torch.equal(update.rows, before.rows),
        )
        self._require(all(kept), "the update was changed")
        self._require(same, "the same seed gave other bytes: draw from ctx.generator()")
        size = len(payload.to_bytes())
        most = self._budget.n_bytes
        if most is not None and sent.obeys_rate():
            self._require(
                size <= most,
                f"{size} bytes, of {most}: ask Budget.most what fits or, if it has one "
                "rate only, say fixed_rate = True",
            )
        self._decode(payload)
        self._next(sent)
        if self._sender == SERVER and sent.heterogeneous:
            lower = replace(self._budget, compression_rate=_GENEROUS)
            with self._naming():
                budgets = [lower, self._budget]
                sent = self._make()
                count = len(sent.encode_broadcast(update, budgets, self._ctx))
            self._require(count == 2, f"{count} payloads for two bandwidth tiers")

    def _next(self, sent: Compressor) -> None:
        """Check what is remembered, by the message after this one."""
        other = self._update_of(len(self._update), seed=1)
        restored = self._make()
        if self._sender != SERVER:
            with self._naming():
                again, alone = self._encode(sent, other), self._encode(restored, other)
            same = again.to_bytes() == alone.to_bytes()
            self._require(same, "it remembers other updates, but serves all clients")
            return
        with self._naming():
            state = sent.state_dict()
            saved = _save(state)
            again = self._encode(sent, other)
            copied = _save(state) == saved
            restored.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
            alone = self._encode(restored, other)
        self._require(copied, "state_dict() returned no copies: they changed later")
        same = again.to_bytes() == alone.to_bytes()
        self._require(same, "what it remembers is not all in state_dict()")

    def cohort(self) -> None:
        """Check that a cohort is encoded like its clients one by one."""
        updates = [self._update_of(n, seed=n) for n in (1, len(self._update), 2)]
        cohort = CohortUpdate(
            clients=torch.arange(3),
            offsets=torch.tensor(np.cumsum([0, *map(len, updates)])),
            ids=torch.cat([update.ids for update in updates]),
            rows=torch.cat([update.rows for update in updates]),
            theta=torch.zeros(3, 0),
        )
        ctxs = [replace(self._ctx, sender=client) for client in range(3)]
        sent = self._make()
        with self._naming("encode_cohort: "):
            together = list(sent.encode_cohort(cohort, [self._budget] * 3, ctxs))
            alone = [
                sent.encode(update, self._budget, ctx)
                for update, ctx in zip(updates, ctxs, strict=True)
            ]
            list(sent.decode_cohort(together, ctxs))
        same = list(map(Payload.to_bytes, together)) == list(
            map(Payload.to_bytes, alone)
        )
        self._require(same, "encode_cohort does not give what encode gives")

    def fidelity(self) -> None:
        """Check that something of an update is left, or all of it."""
        sent, update = self._make(), self._update
        if sent.table_values is not None and REAL not in sent.table_values:
            return
        with self._naming():
            payload = self._encode(sent, update)
        decoded = self._decode(payload)
        table = torch.zeros(self._budget.n_items, self._budget.dim)
        table[update.ids] = update.rows
        energy = float(table.square().sum())
        table[decoded.ids] -= decoded.rows
        error = float(table.square().sum())
        self._require(
            error < energy,
            f"decoding leaves an error of {error / energy:.3g} of the update's energy",
        )
        self._require(error == 0 or not sent.lossless, "it is not lossless")

    def is_fixed(self) -> None:
        """Check that another rate changes nothing."""
        other = self._make().encode(
            self._update, replace(self._budget, compression_rate=_GENEROUS), self._ctx
        )
        same = other.to_bytes() == self._encode(self._make(), self._update).to_bytes()
        self._require(same, f"fixed_rate, but a rate of {_GENEROUS} gives other bytes")

    def adds_up(self) -> None:
        """Check that the payload of a sum is the sum of payloads of two clients."""
        first, second = self._update, self._update_of(len(self._update), seed=1)
        both = RowUpdate(first.ids, first.rows + second.rows)
        with self._naming():
            payloads = [
                self._make().encode(update, self._budget, replace(self._ctx, sender=n))
                for n, update in enumerate((first, second, both))
            ]
            one, other, whole = (payload.values() for payload in payloads)
            added = payloads[0].with_values(one + other)
        near = np.abs(one + other - whole).max() <= 1e-5 * np.abs(whole).max()
        self._require(bool(near), "it is linear, but its values do not add up")
        same = added.to_bytes() == payloads[2].with_values(one + other).to_bytes()
        self._require(same, "it is linear, but other fields depend on the sender")
        decoded, expected = self._decode(added), self._decode(payloads[2])
        near = torch.allclose(decoded.rows, expected.rows, atol=1e-4, rtol=1e-3)
        self._require(near, "it is linear, but a sum does not decode to the sum")

    def same_for_all(self) -> None:
        """Check that it does not matter who a receiver is."""
        ctx = replace(self._ctx, sender=SERVER)
        with self._naming():
            one, other = (
                self._make().encode(
                    self._update, self._budget, replace(ctx, receiver=n)
                )
                for n in (0, 1)
            )
        same = one.to_bytes() == other.to_bytes()
        self._require(same, "it is deterministic, but payloads depend on the receiver")

    def _decode(self, payload: Payload) -> RowUpdate:
        received = Payload.from_bytes(payload.to_bytes())
        with self._naming("decode: "):
            decoded = self._make().decode(received, self._ctx)
        ids, rows = decoded.ids, decoded.rows
        on_cpu = ids.dtype == torch.int64 and not ids.is_cuda
        self._require(on_cpu, "decode: ids must be int64, on the CPU")
        self._require(bool((ids.diff() > 0).all()), "decode: ids must increase")
        known = set(ids.tolist()) <= set(self._update.ids.tolist())
        self._require(known, "decode returned rows that were not sent")
        floats = rows.dtype == torch.float32
        self._require(floats, f"decode: rows must be float32, not {rows.dtype}")
        shape = (len(ids), self._budget.dim)
        self._require(
            rows.shape == shape,
            f"decode: rows of shape {tuple(rows.shape)}, not {shape}",
        )
        self._require(bool(rows.isfinite().all()), "decode: a row is not finite")
        return decoded

    def _encode(self, compressor: Compressor, update: RowUpdate) -> Payload:
        if self._sender == SERVER:
            return compressor.encode_broadcast(update, [self._budget], self._ctx)[0]
        return compressor.encode(update, self._budget, self._ctx)

    def _update_of(self, n: int, seed: int) -> RowUpdate:
        """Rows of unequal norms."""
        rng = np.random.default_rng([n, seed])
        n_items, dim = self._budget.n_items, self._budget.dim
        ids = np.sort(rng.choice(n_items, n, replace=False))
        rows = rng.standard_normal((n, dim)) * rng.lognormal(0, 1, (n, 1))
        return row_update(ids, rows.astype(np.float32))

    @contextmanager
    def _naming(self, what: str = "") -> Iterator[None]:
        """Say where another error arose."""
        try:
            yield
        except Exception as error:
            raise AssertionError(f"{self._where}: {what}{error!r}") from error

    def _require(self, kept: bool, what: str) -> None:
        if not kept:
            raise AssertionError(f"{self._where}: {what}")


def _save(state: dict[str, Any]) -> bytes:
    """Write a state as checkpoints do, which hold plain types and tensors only."""
    file = io.BytesIO()
    torch.save(state, file)
    try:
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except UnpicklingError as error:
        raise TypeError("state_dict() must return plain types and tensors") from error
    return file.getvalue()
