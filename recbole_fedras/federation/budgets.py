"""What clients of each bandwidth tier, and the server to them, may send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from recbole_fedras.compressor.base import Budget, Compressor
from recbole_fedras.errors import BudgetError
from recbole_fedras.federation.network import bytes_of_network, size_of_network
from recbole_fedras.federation.settings import Federation
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload

#: More than any round, client or number of samples that a header has room for.
_MOST = 2**31

#: Share of a direction where both have the same.
_EVEN = 0.5


class Budgets(NamedTuple):
    """What may be sent, for each bandwidth tier.

    Attributes
    ----------
    uplink, downlink : tuple of Budget
    uplink_network : tuple of int
        Bytes that a client's network may take; empty: it travels as it is.
    downlink_network : int or None
        Bytes that the server's, one for all tiers, may take in the mean; None: it
        travels as it is.
    """

    uplink: tuple[Budget, ...]
    downlink: tuple[Budget, ...]
    uplink_network: tuple[int, ...] = ()
    downlink_network: int | None = None


def make_budgets(
    federation: Federation,
    n_rows: int,
    dim: int,
    n_theta: int,
    uplink: Compressor,
    downlink: Compressor | None,
) -> Budgets:
    """Return what may be sent of a table (n_rows, dim) and a network.

    What a rate makes no difference to needs no budget of bytes. Without a compressor
    for the downlink the replica policy codes it, and keeps to any budget.

    Raises
    ------
    BudgetError
        If a compressor cannot work with one of them.
    """
    share, shape = federation.uplink_share, (n_rows, dim, n_theta)
    up, down = _rates(federation, share), _rates(federation, 1 - share)
    coded_up: tuple[int, ...] = ()
    coded_down = None
    if n_theta and federation.compress_network:
        coded_up = tuple(bytes_of_network(n_theta, rate) for rate in up)
        if downlink is None:
            coded_down = min(bytes_of_network(n_theta, rate) for rate in down)
    whole = size_of_network(n_theta)
    of_up = coded_up or (whole,) * len(up)
    of_down = (whole if coded_down is None else coded_down,) * len(down)
    return Budgets(
        _budgets(federation, "uplink", up, of_up, shape, uplink),
        _budgets(federation, "downlink", down, of_down, shape, downlink),
        coded_up,
        coded_down,
    )


def _rates(federation: Federation, share: float) -> tuple[float, ...]:
    """Return the rates of a direction that has a share of what both may send."""
    rates = federation.compression_rates
    if federation.uplink_share == _EVEN:
        return rates
    return tuple(max(0.0, 1 - 2 * share * (1 - rate)) for rate in rates)


def _budgets(
    federation: Federation,
    direction: str,
    rates: Sequence[float],
    networks: Sequence[int],
    shape: tuple[int, int, int],
    compressor: Compressor | None,
) -> tuple[Budget, ...]:
    """Return the budgets of a direction, of whose bytes networks take some."""
    try:
        return tuple(
            _budget(federation.budget, rate, network, shape, compressor)
            for rate, network in zip(rates, networks, strict=True)
        )
    except BudgetError as error:
        if federation.uplink_share == _EVEN:
            raise
        of = f"{direction}s, by uplink_share={federation.uplink_share}"
        raise BudgetError(f"{of}: {error}, or another share") from None


def _budget(
    counted: str,
    rate: float,
    network: int,
    shape: tuple[int, int, int],
    compressor: Compressor | None,
) -> Budget:
    if counted == "wire" and (compressor is None or compressor.obeys_rate()):
        budget = wire_budget(*shape, rate, network)
    else:
        n_rows, dim, _ = shape
        budget = Budget(n_rows, dim, rate)
    if compressor is None:
        budget.require("number of values", budget.values)
    else:
        compressor.validate(budget)
    return budget


def hold_to(budget: Budget, payload: Payload, compressor: Compressor) -> None:
    """Check that a compressor has kept to its bytes.

    Raises
    ------
    BudgetError
        If its payload takes more.
    """
    if budget.n_bytes is None or not compressor.obeys_rate():
        return
    size = payload.size
    if size > budget.n_bytes:
        raise BudgetError(
            f"{type(compressor).__name__} made a payload of {size} bytes, of at most "
            f"{budget.n_bytes} (budget=wire, compression_rate="
            f"{budget.compression_rate}): it must ask Budget.most what fits or, if it "
            "has one rate only, say fixed_rate = True"
        )


def wire_budget(
    n_rows: int, dim: int, n_theta: int, rate: float, network: int
) -> Budget:
    """Return what a rate of all bytes leaves of a message for its compressed part.

    The message has at most ``1 - rate`` of the bytes of item table and network in
    float32. Off go ``network``, the bytes that the network takes, and headers: an
    update's, or a downlink's and the receipt that follows it.

    Raises
    ------
    BudgetError
        If nothing is left.
    """
    limit = int(4 * (n_rows * dim + n_theta) * (1 - rate))
    most = (_MOST, _MOST, _MOST)  # round, client, version
    update = Header(Kind.UPDATE, *most, _MOST, _MOST, 0.0)
    down = Header(Kind.DOWNLINK, *most, _MOST)
    counted = Header(Kind.RECEIPT, *most, None)
    empty = len(Payload().to_bytes())
    headers = max(
        len(Message.of(Payload(), update)) - empty,
        sum(len(Message.of(Payload(), header)) for header in (down, counted)) - empty,
    )
    rest = headers + network
    n_bytes = limit - rest
    if n_bytes < 1:
        as_it_is = network == size_of_network(n_theta) > 0
        or_code = ", or compress_network=True with replica=grid" if as_it_is else ""
        raise BudgetError(
            f"compression_rate={rate} with budget=wire leaves {limit} bytes for a "
            f"message, but {rest} are taken by the network ({n_theta} "
            f"values) and framing: choose a lower compression_rate{or_code}"
        )
    return Budget(n_rows, dim, rate, n_bytes)
