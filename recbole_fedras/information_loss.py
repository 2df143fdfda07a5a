"""Information loss of a run: what compression takes from updates and from the table."""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
from torch import Tensor

from recbole_fedras.compressor import CohortUpdate
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.config import Config
from recbole_fedras.data.clients import Ints
from recbole_fedras.data.dataset import client_data
from recbole_fedras.federation.aggregation import RowMean
from recbole_fedras.federation.cohort import Trained
from recbole_fedras.federation.simulation import RoundReport, Simulation
from recbole_fedras.quick_start import prepare_data
from recbole_fedras.report import communication
from recbole_fedras.sweep import Keys, Outcome
from recbole_fedras.wire.channel import DIRECTIONS


class LossMeter(Simulation):
    """A simulation that aggregates what clients would have sent uncompressed, too.

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
        table = self.server.item_table
        before = table.clone()
        n_items, dim = table.shape
        self._exact = RowMean(n_items, dim, self.federation.aggregation)
        report = super().run_round()
        update = self._exact.update()
        exact = torch.zeros_like(before)
        exact[update.ids] = update.rows.to(exact)
        sent = self.server.item_table - before
        lacking = self.server.item_table - self.replicas.tables[0]
        loss = {"client": _squared(sent - exact), "server": _squared(lacking)}
        self.losses.append(loss)
        return report

    def _train(self, part: Ints) -> Trained:
        compressor = self.uplink
        if compressor.gradient_map(self._budgets[0], self._context(0, 0)) is not None:
            self.uplink = NoCompression()
            self._note(super()._train(part).updates)
            self.uplink = compressor
            return super()._train(part)
        trained = super()._train(part)
        self._note(trained.updates)
        return trained

    def _note(self, updates: CohortUpdate) -> None:
        for index in range(len(updates)):
            self._exact.add(updates[index])


def _squared(error: Tensor) -> float:
    return float(error.double().square().sum())


def information_loss(keys: Keys) -> Outcome:
    """Train without evaluation, and return the mean losses of a round.

    Returns
    -------
    dict
        ``result``, whose ``test_result`` holds ``client``, ``server`` and ``total``,
        means over entries, and the same as ``... sum``.
    """
    config = Config(config_dict=keys)
    train_data, _, _ = prepare_data(config)
    model = config.model_class(config, train_data._dataset)
    meter = LossMeter(
        model,
        client_data(train_data._dataset),
        *config.make_compressors(),
        config.federation(),
        config.local_training(),
        config["n_jobs"],
    )
    with torch.no_grad():
        for _ in range(config["epochs"]):
            meter.run_round()
    table = meter.server.item_table
    losses: dict[str, float] = {}
    for unit, size in (("", table.numel()), (" sum", 1)):
        client, server = (
            mean(loss[side] for loss in meter.losses) / size
            for side in ("client", "server")
        )
        sides = {"client": client, "server": server, "total": client + server}
        losses |= {f"{side}{unit}": value for side, value in sides.items()}
    sizes: dict[str, Any] = {
        "table_bytes": 4 * table.numel(),
        "theta_bytes": 4 * len(meter.server.theta),
        "mb_per_s": {key: config[f"{key}_mb_per_s"] for key in DIRECTIONS},
    }
    return {
        "result": {
            "test_result": losses,
            "communication": communication(meter.ledger.totals, **sizes),
        }
    }
