"""What exhibits show of a run besides accuracy: information loss, groups, seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from statistics import mean
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor import (
    Budget,
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
)
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.config import Config
from recbole_fedras.config import schema as keys
from recbole_fedras.data.clients import Ints
from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.federation.client.training import Trained
from recbole_fedras.federation.server.aggregation import aggregate
from recbole_fedras.federation.simulation import RoundReport, Simulation
from recbole_fedras.quick_start import Rounds, cost, make_simulation, prepare_data
from recbole_fedras.wire.payload import Payload

Note = Callable[[RowUpdate, Payload, RoundContext, float], None]

#: Sizes of groups: the largest of a kind, by name.
GROUP_SIZES = {
    "1": 1, "2": 2, "3 to 4": 4, "5 to 8": 8, "9 to 16": 16, "17 to 32": 32,
    "33 to 64": 64, "over 64": inf,
}  # fmt: skip


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
        self._exact = aggregate(self.federation.aggregation, before)
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


class Observed:
    """A compressor, and what it does with every downlink.

    Parameters
    ----------
    compressor : Compressor
        What does the work.
    note : callable
        ``note(update, payload, ctx, seconds)``.
    """

    def __init__(self, compressor: Compressor, note: Note) -> None:
        self._compressor = compressor
        self._note = note

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying asks before there is a compressor
            raise AttributeError(name)
        return getattr(self._compressor, name)

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Encode as the compressor does, and note what it took."""
        start = perf_counter()
        payloads = self._compressor.encode_broadcast(update, budgets, ctx)
        self._note(update, payloads[0], ctx, perf_counter() - start)
        return payloads


def information_loss(cell: Keys) -> Outcome:
    """Return the mean losses of a round (FedRAS, Table 3).

    Returns
    -------
    dict
        ``result``, whose ``test_result`` holds ``client``, ``server`` and ``total``,
        means over entries, and the same as ``... sum``.
    """
    config = Config(config_dict=cell)
    if not config.federation().optimization.is_plain:
        keys.refuse(config, "server_optimizer", "sgd of rate 1 to compare aggregates")
    meter = _train(config, LossMeter)
    losses: dict[str, float] = {}
    for unit, size in (("", meter.server.item_table.numel()), (" sum", 1)):
        client, server = (
            mean(loss[side] for loss in meter.losses) / size
            for side in ("client", "server")
        )
        sides = {"client": client, "server": server, "total": client + server}
        losses |= {f"{side}{unit}": value for side, value in sides.items()}
    return _outcome(config, meter, losses)


def group_sizes(cell: Keys) -> Outcome:
    """Return how many rows share an action, and how alike they are (FedRAS, Figure 4).

    Rows are of one group if they arrive alike.

    Returns
    -------
    dict
        ``result``, whose ``test_result`` holds ``mean cosine`` of a row and its
        action, averaged over the rows of a round and over rounds; ``worst group``, the
        lowest mean cosine of a group's rows, averaged over rounds; and the share of all
        rounds' groups that have so many rows, by :data:`GROUP_SIZES`.
    """
    config = Config(config_dict=cell)
    counts: Counter[str] = Counter()
    cosines: list[float] = []
    worst: list[float] = []

    def note(update: RowUpdate, payload: Payload, ctx: RoundContext, _: float) -> None:
        received = compressor.decode(payload, ctx)
        pairs = update.rows.cpu().double(), received.rows.double()
        cosine = torch.cosine_similarity(*pairs, dim=1).numpy()
        _, groups, sizes = np.unique(
            received.rows.numpy(), axis=0, return_inverse=True, return_counts=True
        )
        cosines.append(float(cosine.mean()))
        worst.append(float((np.bincount(groups.ravel(), cosine) / sizes).min()))
        for size in sizes:
            counts[
                next(name for name, most in GROUP_SIZES.items() if size <= most)
            ] += 1

    _, compressor = config.make_compressors()
    simulation = _train(config, Simulation, note)
    shares = {name: counts[name] / counts.total() for name in GROUP_SIZES}
    alike = {"mean cosine": mean(cosines), "worst group": mean(worst)}
    return _outcome(config, simulation, alike | shares)


def transfer_time(cell: Keys) -> Outcome:
    """Return what a downlink takes on the link and at the server (FedRAS, Table 6).

    Returns
    -------
    dict
        ``result``, whose ``test_result`` holds ``transfer s``, bytes by
        ``downlink_mb_per_s``, and ``compute s``, of encoding; means over all rounds but
        the first, which warms up.
    """
    config = Config(config_dict=cell)
    if config["epochs"] < 2:
        keys.refuse(config, "epochs", "at least 2: the first round is left out")
    transfer: list[float] = []
    compute: list[float] = []

    def note(
        update: RowUpdate, payload: Payload, ctx: RoundContext, seconds: float
    ) -> None:
        n_bytes = len(payload.to_bytes())
        transfer.append(n_bytes / (1e6 * config["downlink_mb_per_s"]))
        compute.append(seconds)

    simulation = _train(config, Simulation, note)
    times = {"transfer s": mean(transfer[1:]), "compute s": mean(compute[1:])}
    return _outcome(config, simulation, times)


class FullSVD(SVD):
    """SVD with singular vectors that nobody needs: ``full_matrices=True``.

    Only to compare times with FedRAS (KDD 2025), Table 6, whose 5.70 s fit this way.
    """

    def _right(self, rows: Tensor, rank: int) -> Tensor:
        vectors = np.linalg.svd(rows.cpu().numpy(), full_matrices=True)[2]
        return torch.from_numpy(vectors[:rank]).to(rows)


def _train(config: Config, kind: type[Rounds], note: Note | None = None) -> Rounds:
    """Run all rounds of a configuration, without evaluation."""
    if note is not None and config["replica"] == "personal":
        keys.refuse(config, "replica", "broadcast or stale: downlinks to all are noted")
    if note is not None and config["bandwidth"] is not None:
        keys.refuse(config, "bandwidth", "None: downlinks of one rate are noted")
    train_data, _, _ = prepare_data(config)
    uplink, downlink = config.make_compressors()
    if note is not None:
        downlink = cast(Compressor, Observed(downlink, note))
    simulation = make_simulation(config, train_data, kind, (uplink, downlink))
    with torch.no_grad():
        for _ in range(config["epochs"]):
            simulation.run_round()
    return simulation


def _outcome(
    config: Config, simulation: Simulation, values: dict[str, float]
) -> Outcome:
    return {
        "result": {"test_result": values, "communication": cost(config, simulation)}
    }
