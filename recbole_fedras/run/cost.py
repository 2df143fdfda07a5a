"""What a run has cost, beside what plain FedAvg would have."""

from __future__ import annotations

from typing import Any

from recbole_fedras.config import Config
from recbole_fedras.federation.server.selection import cohort_size
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.run.report import communication


def cost(config: Config, simulation: Simulation) -> dict[str, Any]:
    """Return a run's :func:`communication`, beside that of the run without a cut."""
    settings = config.run_settings()
    uncut = settings.uncut
    cohort = cohort_size(len(simulation.data.eligible), uncut.client_fraction)
    rounds = simulation.round * uncut.rounds / settings.rounds
    embedding = simulation.shard.embedding
    n_theta = simulation.agreement.n_theta
    if embedding is not None:
        n_theta -= embedding.n_theta  # they stand in for items
    return communication(
        simulation.ledger.totals,
        table_bytes=4 * simulation.data.n_items * uncut.dim,
        theta_bytes=4 * n_theta,
        participations=rounds * cohort,
        mb_per_s=settings.mb_per_s,
    )
