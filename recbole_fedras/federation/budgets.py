"""What clients of each bandwidth tier, and the server to them, may send."""

from __future__ import annotations

from collections.abc import Collection

import torch

from recbole_fedras.compressor.base import Budget, Compressor
from recbole_fedras.errors import BudgetError
from recbole_fedras.federation.server.state import put_theta
from recbole_fedras.federation.settings import Federation
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.payload import Layout, Payload


def make_budgets(
    federation: Federation,
    n_rows: int,
    dim: int,
    n_theta: int,
    compressors: Collection[Compressor],
) -> list[Budget]:
    """Return what each bandwidth tier may send of a table (n_rows, dim) and a network.

    What sends everything as it is, of whatever is cut, needs no budget of bytes.

    Raises
    ------
    BudgetError
        If a compressor cannot work with one of them.
    """
    rates = federation.compression_rates
    unbudgeted = all(compressor.unbudgeted for compressor in compressors)
    if federation.budget == "wire" and not unbudgeted:
        budgets = [wire_budget(n_rows, dim, rate, n_theta) for rate in rates]
    else:
        budgets = [Budget(n_rows, dim, rate) for rate in rates]
    for compressor in compressors:
        for budget in budgets:
            compressor.validate(budget)
    return budgets


def hold_to(budget: Budget, payload: Payload, compressor: Compressor) -> None:
    """Check that a compressor has kept to its bytes.

    Raises
    ------
    BudgetError
        If its payload takes more.
    """
    if budget.n_bytes is None or compressor.unbudgeted:
        return
    size = len(payload.to_bytes())
    if size > budget.n_bytes:
        raise BudgetError(
            f"{type(compressor).__name__} made a payload of {size} bytes, of at most "
            f"{budget.n_bytes} (budget=wire, compression_rate="
            f"{budget.compression_rate}): it must ask Budget.most what fits"
        )


def wire_budget(n_rows: int, dim: int, rate: float, n_theta: int) -> Budget:
    """Return what a rate of all bytes leaves of a message for its compressed part.

    The message has at most ``1 - rate`` of the bytes of item table and network in
    float32; the network itself and the message's header go off.

    Raises
    ------
    BudgetError
        If nothing is left.
    """
    limit = int(4 * (n_rows * dim + n_theta) * (1 - rate))
    rest = Message.of(put_theta(Payload(), torch.zeros(n_theta)), 2**31, 2**31)
    n_bytes = limit - len(rest.data) + Layout().size
    if n_bytes < 1:
        raise BudgetError(
            f"compression_rate={rate} with budget=wire leaves {limit} bytes for a "
            f"message, but {len(rest.data)} are taken by the network ({n_theta} "
            "values) and framing: choose a lower compression_rate"
        )
    return Budget(n_rows, dim, rate, n_bytes)
