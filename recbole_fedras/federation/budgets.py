"""What clients of each bandwidth tier, and the server to them, may send."""

from __future__ import annotations

from typing import NamedTuple

from recbole_fedras.compressor.base import Budget, Compressor
from recbole_fedras.errors import BudgetError
from recbole_fedras.federation.network import bytes_of_network
from recbole_fedras.federation.settings import Federation
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Layout, Payload

#: More than any round, client or number of samples that a header has room for.
_MOST = 2**31

#: Share of a direction where both have the same.
_EVEN = 0.5


class NetworkBudgets(NamedTuple):
    """What a coded network may take, framing included.

    Attributes
    ----------
    uplink : tuple of int
        Bytes, for each bandwidth tier.
    downlink : int
        Bytes in the mean; of one network for all.
    """

    uplink: tuple[int, ...]
    downlink: int


class Budgets(NamedTuple):
    """What may be sent, for each bandwidth tier.

    Attributes
    ----------
    uplink, downlink : tuple of Budget
    network : NetworkBudgets or None
        None: there is none, or it travels as it is.
    """

    uplink: tuple[Budget, ...]
    downlink: tuple[Budget, ...]
    network: NetworkBudgets | None = None


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
    network = None
    if n_theta and federation.compress_network:
        up, down = (
            [bytes_of_network(n_theta, rate) for rate in _rates(federation, one)]
            for one in (share, 1 - share)
        )
        network = NetworkBudgets(tuple(up), min(down))
    return Budgets(
        _budgets(federation, "uplink", share, shape, uplink),
        _budgets(federation, "downlink", 1 - share, shape, downlink),
        network,
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
    share: float,
    shape: tuple[int, int, int],
    compressor: Compressor | None,
) -> tuple[Budget, ...]:
    """Return the budgets of a direction."""
    try:
        return tuple(
            _budget(federation, rate, *shape, compressor)
            for rate in _rates(federation, share)
        )
    except BudgetError as error:
        if federation.uplink_share == _EVEN:
            raise
        of = f"{direction}s, by uplink_share={federation.uplink_share}"
        raise BudgetError(f"{of}: {error}, or another share") from None


def _budget(
    federation: Federation,
    rate: float,
    n_rows: int,
    dim: int,
    n_theta: int,
    compressor: Compressor | None,
) -> Budget:
    bound = compressor is None or compressor.obeys_rate()
    if federation.budget == "wire" and bound:
        coded = federation.compress_network
        budget = wire_budget(n_rows, dim, rate, n_theta, coded)
    else:
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
    n_rows: int, dim: int, rate: float, n_theta: int, coded: bool = False
) -> Budget:
    """Return what a rate of all bytes leaves of a message for its compressed part.

    The message has at most ``1 - rate`` of the bytes of item table and network in
    float32. The network, as it is or coded, and headers go off: an update's, or a
    downlink's and the receipt that follows it.

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
    network = Layout().floats("theta", n_theta).size - Layout().size
    if coded:
        network = bytes_of_network(n_theta, rate)
    rest = headers + (network if n_theta else 0)
    n_bytes = limit - rest
    if n_bytes < 1:
        or_code = " or compress_network=True" if n_theta and not coded else ""
        raise BudgetError(
            f"compression_rate={rate} with budget=wire leaves {limit} bytes for a "
            f"message, but {rest} are taken by the network ({n_theta} "
            f"values) and framing: choose a lower compression_rate{or_code}"
        )
    return Budget(n_rows, dim, rate, n_bytes)
