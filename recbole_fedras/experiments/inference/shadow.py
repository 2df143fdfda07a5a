"""The field's attacker: it trains as the client would, on labels that it guesses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_fedras.data.clients import Samples
from recbole_fedras.experiments.inference.base import (
    Attacker,
    Floats,
    Known,
    Seen,
    spread,
)
from recbole_fedras.federation.client.training import Participants, train_cohort
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.numeric.theta import unflatten

Bools = NDArray[np.bool_]

#: Share of the items that are settled by one training.
_STEP = 0.2


class Shadow(Attacker):
    """Guesses labels, trains a user on them, and keeps those that move rows alike.

    Source: Yuan et al., "Interaction-level Membership Inference Attack Against
    Federated Recommender Systems" (WWW 2023), IMIA. Read: the abstract and the released
    code (github hi-weiyuan/FedRec_IMIA, ``membership_attack.py``), not the paper.

    A random share of the rows sent is labelled positive, a user of a random vector
    trains on them from the table that the client held, and the items whose rows
    come to lie nearest to the client's keep their guesses. The others are guessed anew,
    until all are settled.

    Notes
    -----
    **Departures**: as many items are guessed as the client has, by its header if that
    tells, instead of a fifth; a fifth of the items is settled at a time (0.9 in the
    code's settings); each item is trained on once an epoch; the user starts with the
    deviation of the table's values, in place of Xavier's; BPR's clients are trained
    with BCE.
    """

    def scores(self, seen: Seen, known: Known) -> Floats:
        """Return 1 for items settled as the client's, 0 for others."""
        n_rows, header = len(seen.update), seen.header
        seed = known.agreement.federation.seed
        rng = generator(seed, Stream.ATTACK, 1 + header.round, 1, header.client)
        count = known.n_interactions(header) or n_rows // (
            1 + known.training.n_negatives
        )
        labels, settled = np.zeros(n_rows, bool), np.zeros(n_rows, bool)
        sent = seen.update.rows.double()
        while not settled.all():
            _guess(labels, settled, count, rng)
            distance = (_trained(seen, known, labels, rng) - sent).norm(dim=1).numpy()
            distance[settled] = np.inf
            settled[np.argsort(distance)[: int(_STEP * n_rows) + 1]] = True
        return spread(seen, labels)


def _guess(labels: Bools, settled: Bools, count: int, rng: np.random.Generator) -> None:
    """Label what is not settled so that as many items as ``count`` are positive."""
    open_places = rng.permutation(np.flatnonzero(~settled))
    labels[open_places] = False
    labels[open_places[: max(0, count - int(labels.sum()))]] = True


def _trained(
    seen: Seen, known: Known, labels: Bools, rng: np.random.Generator
) -> torch.Tensor:
    """Return what a user of a random vector makes of the rows, shape (n_rows, dim)."""
    base, training = seen.base, replace(known.training, pairwise=False)
    start = rng.normal(0, float(base.std()), (1, base.shape[1]))
    states = None
    if training.user_optimizer == "adam":
        states = torch.zeros(1, 2 * base.shape[1] + 1)
    user = Participants(
        torch.tensor([0]),
        torch.from_numpy(start).float(),
        states,
        base[None],
        torch.tensor([0]),
    )
    model = known.model._replace(theta=unflatten(seen.theta, known.model.theta))
    samples = _samples(seen, labels, training.local_epochs, rng)
    return train_cohort(model, user, [samples], training).updates.rows.double()


def _samples(
    seen: Seen, labels: Bools, n_epochs: int, rng: np.random.Generator
) -> Samples:
    """Return each row once an epoch, in random order."""
    rows = np.stack([rng.permutation(len(labels)) for _ in range(n_epochs)]).ravel()
    return Samples(
        n_epochs,
        np.array([0, len(labels)]),
        np.array([0, len(rows)]),
        seen.update.ids.numpy(),
        rows.astype(np.int32),
        labels[rows].astype(np.float32),
    )
