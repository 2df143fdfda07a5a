"""Information loss: what compression makes of a round's aggregate and of the table."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.federation.round import RoundReport
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.numeric.parallel import threads


class LossMeter(Simulation):
    """A simulation that aggregates what clients would have sent uncompressed, too.

    A second shard with the same clients, and no compression, answers the same
    invitations.

    Source: FedRAS (KDD 2025), Table 3. The client side's loss is the squared error of
    the aggregate of compressed updates against that of the same clients' updates
    without compression, the server side's that of the clients' table against the
    server's.

    Notes
    -----
    **Departures**: the paper does not say whether errors are averaged or summed over
    the N d entries; both are kept. A method that trains in a subspace (CoLR) is
    compared with the same clients trained without it.

    Attributes
    ----------
    losses : list of dict
        ``client`` and ``server``, sums over entries, of each round.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[dict[str, float]] = []

    def run_round(self) -> RoundReport:
        """Run a round and note its losses."""
        parameters = self.server.parameters
        before = parameters.item_table.clone()
        exact = self._uncompressed()
        report = super().run_round()
        sent = parameters.item_table - before
        lacking = parameters.item_table - self.shard.replicas.tables[0]
        loss = {"client": _squared(sent - exact), "server": _squared(lacking)}
        self.losses.append(loss)
        return report

    def _uncompressed(self) -> Tensor:
        """Return what the aggregate of the round to come would be, shape (N, d)."""
        aggregator, lossless = copy.deepcopy(self.server.aggregator), NoCompression()
        table = self.server.parameters.item_table
        aggregator.begin(table)
        shard = self.shard.twin(lossless)
        with torch.no_grad(), threads(1):
            for message in shard.participate(self.server.invite()):
                client = message.header.client
                ctx = self.agreement.context(message.header.round, client)
                theta = self.agreement.network_change(message.payload)
                aggregator.add(client, lossless.decode(message.payload, ctx), theta)
        self.server.rollback()
        update, _ = aggregator.result()
        exact = torch.zeros_like(table)
        exact[update.ids] = update.rows.to(exact)
        return exact


def _squared(error: Tensor) -> float:
    return float(error.double().square().sum())
