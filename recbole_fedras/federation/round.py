"""One federated round over any transport (FedRAS, KDD 2025, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from recbole_fedras.errors import FederationError
from recbole_fedras.federation.server.intake import Refusal
from recbole_fedras.federation.server.server import Closed, Server
from recbole_fedras.wire.ledger import Ledger
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.transport import Transport


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round did and cost: one row of ``rounds.csv``.

    Attributes
    ----------
    loss : float or None
        Of a training sample, or of a pair with BPR, the mean. None if clients do not
        report it.
    n_invited, n_clients : int
        Clients invited, and those whose updates counted.
    refusals : list of Refusal
        Messages that counted for nothing, and why.
    bytes : dict of str to int
        The round of the ledger.
    metrics : dict of str to float
        What the replica policy and the downlink's compressor report.
    seconds : dict of str to float
        By phase.
    """

    loss: float | None
    n_invited: int
    n_clients: int
    refusals: list[Refusal]
    bytes: dict[str, int]
    metrics: dict[str, float]
    seconds: dict[str, float]


def run_round(
    server: Server,
    transport: Transport,
    ledger: Ledger,
    deadline: float | None = None,
    trusted: bool = True,
) -> RoundReport:
    """Invite, exchange, receive, close; and tell those who counted that they have.

    A round happens wholly or not at all: whatever fails before it is committed leaves
    server and shards as they were. Afterwards it counts, and only receipts are left to
    be delivered. One that nobody answers counts as well, and changes nothing but what
    lasts in the server's optimizer.

    Parameters
    ----------
    server : Server
    transport : Transport
        Reaches the shards.
    ledger : Ledger
        Books every message, either way.
    deadline : float, optional
        Seconds that answers may take.
    trusted : bool
        Whether clients are. Then the settings must be wrong if all who answer are
        refused; else such a round is as one that nobody answers.

    Raises
    ------
    FederationError
        If trusted clients answered, and none of them counted.
    """

    def ask(messages: Iterable[Message]) -> None:
        for answer in transport.exchange(ledger.through(messages), deadline):
            message = server.receive(answer)
            if message is None:
                ledger.book_unread("uplink", answer.size)
            else:
                ledger.book(message)

    ledger.open_round()
    try:
        ask(server.invite())
        for messages in server.follow_up():
            ask(messages)
        closed = server.close()
        if trusted:
            _require_counted(closed, server.round - 1)
        receipts = list(ledger.through(server.receipts()))
    except BaseException:
        server.rollback()
        transport.settle(())
        raise
    server.commit()
    cost = ledger.close_round()
    transport.settle(receipts)
    return RoundReport(
        closed.loss,
        closed.n_invited,
        len(closed.counted),
        closed.refusals,
        cost,
        server.policy.metrics(closed.counted),
        server.seconds.taken(),
    )


def _require_counted(closed: Closed, round: int) -> None:
    """Refuse a round of which nothing is left because all was refused."""
    if closed.refusals and not len(closed.counted) and not closed.lost:
        reasons = "; ".join(map(str, closed.refusals[:3]))
        raise FederationError(
            f"round {round}: of {closed.n_invited} clients invited, none sent an "
            f"update that counts ({reasons}); where norms are the reason, lower "
            "learning_rate or raise max_update_norm"
        )
