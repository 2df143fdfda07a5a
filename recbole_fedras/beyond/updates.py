"""The update of any PyTorch model as bytes, by any compressor, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import msgpack
import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    REAL,
    SERVER,
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
)
from recbole_fedras.errors import BudgetError, ConfigError, PayloadError
from recbole_fedras.numeric.theta import flatten, unflatten
from recbole_fedras.wire.payload import FLOAT32, Payload, unpack

Update = Mapping[str, Tensor]

#: Bytes that msgpack takes for a message, and for each of its entries, at most.
_MESSAGE, _ENTRY = 8, 5


class Occasion(NamedTuple):
    """What both ends know of an update before it arrives.

    Attributes
    ----------
    round : int
    sender : int
        Number of the client, from 0; by default the server.
    seed : int
        The run's.
    """

    round: int = 0
    sender: int = SERVER
    seed: int = 2020

    def context(self, index: int, table: Tensor) -> RoundContext:
        """Return what a compressor is told of a tensor: it draws numbers of its own."""
        words = np.random.SeedSequence([self.seed, index]).generate_state(1)
        n_rows, dim = table.shape
        return RoundContext(self.round, int(words[0]), n_rows, dim, self.sender)


#: The server's in round 0, where a caller has no others.
FIRST = Occasion()


def compress_update(
    update: Update,
    compressor: Compressor,
    compression_rate: float,
    occasion: Occasion = FIRST,
) -> bytes:
    """Encode the change of a model's parameters.

    A tensor becomes a table as in PowerSGD (Vogels et al., NeurIPS 2019), whose
    released code reshapes it to ``(out, rest)``: of a linear layer's weight the rows
    are outputs, of a convolution's each is one kernel over all inputs. A table that
    then is wider than high is transposed, since compressors expect more rows than
    columns; rows of zeros are not sent. Tensors of one dimension, as biases, travel as
    they are. Tables share what is left by their numbers of values; a small one that the
    compressor could not work on gets what that takes, at most to travel as it is.

    Parameters
    ----------
    update : mapping of str to Tensor
        Of floats, as differences of two ``state_dict()``; not changed.
    compressor : Compressor
        Any that works on updates of its own accord: not CE, CoLR, BinaryCodes.
    compression_rate : float
        ``1 - bytes / bytes of all values in float32``: what is returned is no longer,
        unless the compressor is lossless.
    occasion : Occasion, optional
        The same at both ends.

    Returns
    -------
    bytes
        All that :func:`decompress_update` needs besides names and shapes.

    Raises
    ------
    BudgetError
        If the rate leaves nothing for what is compressed.
    ConfigError
        For a tensor that is not of floats, or a compressor that cannot work so.

    Notes
    -----
    **Wire**: a msgpack array of float32 bytes, those of all tensors that travel as
    they are, and of an entry for each tensor, in the order of their names: nil, or a
    payload's bytes.

    Examples
    --------
    >>> from recbole_fedras.compressor.klt import KLT
    >>> layer = torch.nn.Linear(100, 50)
    >>> update = {name: 0.1 * value for name, value in layer.state_dict().items()}
    >>> data = compress_update(update, KLT(), compression_rate=0.75)
    >>> len(data) <= 0.25 * 4 * (100 * 50 + 50)
    True
    >>> received = decompress_update(data, layer.state_dict(), KLT())
    >>> torch.equal(received["bias"], update["bias"]), received["weight"].shape
    (True, torch.Size([50, 100]))
    """
    _require_fit(compressor)
    tables = {name: _table(name, update[name]) for name in sorted(update)}
    budgets = _budgets(tables, compressor, compression_rate)
    entries: list[bytes | None] = []
    for index, (name, table) in enumerate(tables.items()):
        budget = budgets.get(name)
        if budget is None:
            entries.append(None)
            continue
        ids = table.ne(0).any(dim=1).nonzero().flatten()
        changed, ctx = RowUpdate(ids, table[ids]), occasion.context(index, table)
        entries.append(compressor.encode(changed, budget, ctx).to_bytes())
    whole = {name: table for name, table in tables.items() if name not in budgets}
    data = bytes(msgpack.packb((_floats(whole), entries)))
    _require_bytes(data, tables, compressor, compression_rate)
    return data


def decompress_update(
    data: bytes, like: Update, compressor: Compressor, occasion: Occasion = FIRST
) -> dict[str, Tensor]:
    """Decode what :func:`compress_update` returned.

    Parameters
    ----------
    data : bytes
    like : mapping of str to Tensor
        Of the names, shapes and types of the update, say ``model.state_dict()``.
    compressor : Compressor
        Of the sender's kind; another object does.
    occasion : Occasion, optional

    Returns
    -------
    dict of str to Tensor
        In the order of ``like``.

    Raises
    ------
    PayloadError
        If ``data`` is not an update of this form.
    """
    tables = {name: _table(name, like[name]) for name in sorted(like)}
    parts = unpack(data)
    if (
        len(parts) != 2
        or not isinstance(parts[0], bytes)
        or type(parts[1]) is not tuple
    ):
        raise PayloadError("not an update: floats and entries expected")
    floats, entries = parts
    if len(entries) != len(tables):
        raise PayloadError(f"{len(entries)} tensors arrived, of {len(tables)}")
    named = dict(zip(tables, entries, strict=True))
    whole = {name: tables[name] for name, entry in named.items() if entry is None}
    decoded = _whole(floats, whole)
    for index, (name, entry) in enumerate(named.items()):
        if entry is not None:
            ctx = occasion.context(index, tables[name])
            decoded[name] = _decode(entry, compressor, ctx)
    return {name: _tensor(decoded[name], value) for name, value in like.items()}


class ErrorFeedback:
    """Adds to a sender's update what compression took from earlier ones.

    One for each sender and direction: a client's of the uplink, the server's of the
    downlink. Source: Seide et al., "1-Bit Stochastic Gradient Descent and its
    Application to Data-Parallel Distributed Training of Speech DNNs" (Interspeech
    2014), of which only others' accounts were read.

    Examples
    --------
    What one message leaves out, later ones bring:

    >>> from recbole_fedras.compressor.topk import TopK
    >>> feedback, received = ErrorFeedback(), torch.zeros(40, 8)
    >>> update = {"weight": torch.randn(40, 8)}
    >>> for round in range(20):
    ...     occasion = Occasion(round)
    ...     data = feedback.compress(update, TopK(), 0.5, occasion)
    ...     received += decompress_update(data, update, TopK(), occasion)["weight"]
    >>> error = (received / 20 - update["weight"]).norm()
    >>> bool(error < 0.1 * update["weight"].norm())
    True
    """

    def __init__(self) -> None:
        self._residual: dict[str, Tensor] = {}

    def compress(
        self,
        update: Update,
        compressor: Compressor,
        compression_rate: float,
        occasion: Occasion = FIRST,
    ) -> bytes:
        """Encode as :func:`compress_update`; keep what the receiver lacks then."""
        wanted = {
            name: value + self._residual.get(name, 0) for name, value in update.items()
        }
        data = compress_update(wanted, compressor, compression_rate, occasion)
        received = decompress_update(data, wanted, compressor, occasion)
        self._residual = {name: wanted[name] - received[name] for name in wanted}
        return data


def _require_fit(compressor: Compressor) -> None:
    values, kind = compressor.table_values, type(compressor)
    if values is not None and REAL not in values:
        why = f"it carries {' or '.join(values)} only"
    elif compressor.needs_base:
        why = "it needs the receiver's table"
    elif kind.gradient_map is not Compressor.gradient_map:
        why = "it takes updates that were trained in its subspace"
    else:
        return
    raise ConfigError(
        f"compressor={kind.__name__} cannot compress a model's update: {why}; choose "
        "another, as KLT, FedRAS or TopK"
    )


def _table(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as a table of float32: high, or of one column."""
    if not tensor.is_floating_point():
        raise ConfigError(
            f"tensor {name!r} is of {tensor.dtype}, not of floats: leave it out"
        )
    values = tensor.detach().to("cpu", torch.float32)
    if values.dim() < 2 or not values.numel():
        return values.reshape(-1, 1)
    table = values.reshape(len(values), -1)
    return table.T.contiguous() if table.shape[1] > table.shape[0] else table


def _tensor(table: Tensor, like: Tensor) -> Tensor:
    """Invert :func:`_table`."""
    if like.dim() >= 2 and like.numel() and like[0].numel() > len(like):
        table = table.T
    return table.reshape(like.shape).to(like)


def _budgets(
    tables: Update, compressor: Compressor, compression_rate: float
) -> dict[str, Budget]:
    """Return what each table that is compressed may take of the whole's bytes.

    Tables share by their numbers of values. One that is left too little for the
    compressor gets the least that it works with, or travels as it is if that is no
    more; all others then share what remains.
    """
    total = sum(table.numel() for table in tables.values())
    limit = int(4 * total * (1 - compression_rate)) - _MESSAGE - _ENTRY * len(tables)
    whole = {name: 4 * table.numel() for name, table in tables.items()}
    fixed = {name: whole[name] for name in tables if tables[name].shape[1] == 1}
    while True:
        free = [name for name in tables if name not in fixed]
        left = limit - sum(fixed.values())
        if left < len(free) and not compressor.lossless:
            raise BudgetError(
                f"compression_rate={compression_rate} leaves {max(limit, 0)} bytes for "
                f"a model of {total} values, too few for {type(compressor).__name__} "
                "beside what travels as it is: choose a lower compression_rate"
            )
        n_bytes = fixed | {
            name: left * whole[name] // sum(whole[other] for other in free)
            for name in free
        }
        budgets = {
            name: Budget(len(table), table.shape[1], compression_rate, n_bytes[name])
            for name, table in tables.items()
            if n_bytes[name] < whole[name]
        }
        poor = [name for name in free if not _works(compressor, budgets[name])]
        if not poor:
            return budgets
        fixed |= {name: _least(compressor, budgets[name], whole[name]) for name in poor}


def _least(compressor: Compressor, budget: Budget, whole: int) -> int:
    """Return the fewest bytes that a compressor works with, at most ``whole``."""
    too_few, enough = budget.n_bytes or 0, whole
    while too_few + 1 < enough:  # bisection
        middle = (too_few + enough) // 2
        if _works(compressor, replace(budget, n_bytes=middle)):
            enough = middle
        else:
            too_few = middle
    return enough


def _works(compressor: Compressor, budget: Budget) -> bool:
    try:
        compressor.validate(budget)
    except BudgetError:
        return False
    return True


def _require_bytes(
    data: bytes, tables: Update, compressor: Compressor, compression_rate: float
) -> None:
    total = sum(table.numel() for table in tables.values())
    limit = int(4 * total * (1 - compression_rate))
    if len(data) > limit and not compressor.lossless:
        raise BudgetError(
            f"{type(compressor).__name__} made an update of {len(data)} bytes, of at "
            f"most {limit}: it must ask Budget.most what fits"
        )


def _floats(whole: Update) -> bytes:
    return flatten(whole).numpy().astype(FLOAT32).tobytes()


def _whole(floats: bytes, whole: Update) -> dict[str, Tensor]:
    """Invert :func:`_floats`."""
    n_values = sum(table.numel() for table in whole.values())
    if len(floats) != FLOAT32.itemsize * n_values:
        raise PayloadError(f"{len(floats)} bytes are not {n_values} values")
    values = torch.from_numpy(np.frombuffer(floats, FLOAT32).astype(np.float32))
    return unflatten(values, whole)


def _decode(entry: object, compressor: Compressor, ctx: RoundContext) -> Tensor:
    if not isinstance(entry, bytes):
        raise PayloadError(f"not a payload: {type(entry).__name__}")
    update = compressor.decode(Payload.from_bytes(entry), ctx)
    table = torch.zeros(ctx.n_items, ctx.dim)
    table[update.ids] = update.rows
    return table
