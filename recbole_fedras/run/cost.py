"""What a run has cost, beside what plain FedAvg would have."""

from __future__ import annotations

from typing import Any

from recbole_fedras.config import Config
from recbole_fedras.federation.rounds import Rounds
from recbole_fedras.federation.server.selection import cohort_size
from recbole_fedras.run.report import communication


def cost(config: Config, rounds: Rounds) -> dict[str, Any]:
    """Return a run's :func:`communication`, beside that of the run without a cut.

    A deployment's has ``carried`` too, the bytes of requests and answers.
    """
    settings = config.run_settings()
    uncut = settings.uncut
    cohort = cohort_size(len(rounds.server.eligible), uncut.client_fraction)
    n_rounds = rounds.round * uncut.rounds / settings.rounds
    n_theta = rounds.agreement.n_theta
    if rounds.embedding is not None:
        n_theta -= rounds.embedding.n_theta  # they stand in for items
    counted = communication(
        rounds.ledger.totals,
        table_bytes=4 * rounds.n_items * uncut.dim,
        theta_bytes=4 * n_theta,
        participations=n_rounds * cohort,
        mb_per_s=settings.mb_per_s,
    )
    return counted | ({"carried": rounds.carried} if rounds.carried else {})
