"""What exhibits show of a run besides accuracy: information loss, groups, seconds."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from statistics import mean
from time import perf_counter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
)
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.config import Config
from recbole_fedras.config.values import refuse
from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.experiments.loss_meter import LossMeter
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.run.cost import cost
from recbole_fedras.run.setup import SimulationKind, make_simulation, prepare_data
from recbole_fedras.wire.payload import Payload

Note = Callable[[RowUpdate, Payload, RoundContext, float], None]

#: Sizes of groups: the largest of a kind, by name.
GROUP_SIZES = {
    "1": 1, "2": 2, "3 to 4": 4, "5 to 8": 8, "9 to 16": 16, "17 to 32": 32,
    "33 to 64": 64, "over 64": inf,
}  # fmt: skip


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
        return getattr(self._compressor, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Observed:
        """Copy the compressor; what is noted goes to the same place."""
        return Observed(copy.deepcopy(self._compressor, memo), self._note)

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
        refuse(config, "server_optimizer", "sgd of rate 1 to compare aggregates")
    if config.parts.world is not None:
        refuse(config, "world", "left out: what is late would count as lost")
    meter = _train(config, LossMeter)
    losses: dict[str, float] = {}
    for unit, size in (("", meter.server.parameters.item_table.numel()), (" sum", 1)):
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
    _, compressor = config.make_compressors()
    groups = _Groups(compressor)
    simulation = _train(config, Simulation, groups.note)
    return _outcome(config, simulation, groups.summary())


class _Groups:
    """Counts the groups of rows that arrive alike, and how alike they were before."""

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._counts: Counter[str] = Counter()
        self._cosines: list[float] = []
        self._worst: list[float] = []

    def note(
        self, update: RowUpdate, payload: Payload, ctx: RoundContext, _: float
    ) -> None:
        """Take in what clients receive of an update."""
        received = self._compressor.decode(payload, ctx)
        pairs = update.rows.double(), received.rows.double()
        cosine = torch.cosine_similarity(*pairs, dim=1).numpy()
        _, groups, sizes = np.unique(
            received.rows.numpy(), axis=0, return_inverse=True, return_counts=True
        )
        self._cosines.append(float(cosine.mean()))
        self._worst.append(float((np.bincount(groups.ravel(), cosine) / sizes).min()))
        self._counts.update(map(_size_name, sizes.tolist()))

    def summary(self) -> dict[str, float]:
        """Return means over rounds, and the share of each size."""
        counts = self._counts
        alike = {"mean cosine": mean(self._cosines), "worst group": mean(self._worst)}
        return alike | {name: counts[name] / counts.total() for name in GROUP_SIZES}


def _size_name(size: int) -> str:
    return next(name for name, most in GROUP_SIZES.items() if size <= most)


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
    settings = config.run_settings()
    if settings.rounds < 2:
        refuse(config, "epochs", "at least 2: the first round is left out")
    transfer: list[float] = []
    compute: list[float] = []

    def note(
        update: RowUpdate, payload: Payload, ctx: RoundContext, seconds: float
    ) -> None:
        n_bytes = len(payload.to_bytes())
        transfer.append(n_bytes / (1e6 * settings.mb_per_s["downlink"]))
        compute.append(seconds)

    simulation = _train(config, Simulation, note)
    times = {"transfer s": mean(transfer[1:]), "compute s": mean(compute[1:])}
    return _outcome(config, simulation, times)


class FullSVD(SVD):
    """SVD with singular vectors that nobody needs: ``full_matrices=True``.

    Only to compare times with FedRAS (KDD 2025), Table 6, whose 5.70 s fit this way.
    """

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Factorise and send both factors."""

        def factors(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
            vectors = np.linalg.svd(rows.numpy(), full_matrices=True)[2]
            right = torch.from_numpy(vectors[:rank]).to(rows)
            return rows @ right.T, right

        return self._encode(update, budget, ctx, factors)


def _train(
    config: Config, kind: type[SimulationKind], note: Note | None = None
) -> SimulationKind:
    """Run all rounds of a configuration, without evaluation."""
    methods = config.make_methods()
    if note is not None:
        _require_one_downlink(config)
        observed = cast(Compressor, Observed(methods.downlink, note))
        methods = replace(methods, downlink=observed)
    train_data, _, _ = prepare_data(config)
    simulation = make_simulation(config, train_data, kind, methods)
    for _ in range(config.run_settings().rounds):
        simulation.run_round()
    return simulation


def _require_one_downlink(config: Config) -> None:
    federation = config.federation()
    if federation.replica == "personal":
        refuse(config, "replica", "broadcast or stale: downlinks to all are noted")
    if len(federation.compression_rates) > 1:
        refuse(config, "bandwidth", "None: downlinks of one rate are noted")


def _outcome(
    config: Config, simulation: Simulation, values: dict[str, float]
) -> Outcome:
    return {
        "result": {"test_result": values, "communication": cost(config, simulation)}
    }
