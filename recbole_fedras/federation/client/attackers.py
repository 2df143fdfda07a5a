"""Which of a shard's clients are hostile, and what they do in a round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_fedras.compressor.base import CohortUpdate, RowUpdate
from recbole_fedras.data.clients import Ints, Samples
from recbole_fedras.federation.attacks.base import Attack, Known, draw_attackers
from recbole_fedras.federation.client.training import LocalModel, Participants, Trained
from recbole_fedras.federation.protocol import Agreement


class Attackers:
    """Lets an attack act for those who make it, and shows it nobody else.

    Parameters
    ----------
    agreement : Agreement
    attack : Attack or None

    Attributes
    ----------
    hostile : ndarray of bool, shape (n_clients,)
        Who attacks, drawn once for a run.
    colluding : bool
    """

    def __init__(self, agreement: Agreement, attack: Attack | None) -> None:
        federation, n_clients = agreement.federation, agreement.n_clients
        self._agreement, self._attack = agreement, attack
        self.hostile: NDArray[np.bool_] = np.zeros(n_clients, bool)
        if attack is not None:
            share = federation.attack_share
            self.hostile = draw_attackers(federation.seed, n_clients, share)
        self.colluding = attack is not None and attack.colluding

    def mislabel(self, samples: Samples, group: Ints, pairwise: bool) -> None:
        """Put an attack's labels in place of those drawn for a group's attackers.

        In pairs the first is trained towards: a pair whose labels changed places does
        so itself.
        """
        for index in np.flatnonzero(self.hostile[group]):
            own = slice(*samples.sample_offsets[index : index + 2])
            labels = samples.labels[own]
            if self._attack is not None:
                labels[:] = self._attack.on_labels(labels.copy())
            if pairwise:
                pairs = samples.rows[own].reshape(-1, 2)
                swapped = labels[::2] < labels[1::2]
                pairs[swapped] = pairs[swapped, ::-1]

    def forge(
        self, trained: Trained, model: LocalModel, given: Participants, round: int
    ) -> Trained:
        """Put an attack's updates in place of what attackers have trained.

        Parameters
        ----------
        trained : Trained
        model : LocalModel
            With the network that the cohort was sent.
        given : Participants
            What it trained from.
        round : int
        """
        updates = trained.updates
        chosen = np.flatnonzero(self.hostile[updates.clients.numpy()])
        if self._attack is None or not len(chosen):
            return trained
        places = torch.from_numpy(chosen)
        fraction = self._agreement.federation.client_fraction
        known = Known(
            self._agreement.federation.seed,
            round,
            max(1, int(self._agreement.n_clients * fraction)),
            trained.user_rows[places],
            given.tables,
            given.table_of_client[places],
            model.theta,
            model.score,
        )
        forged = self._attack.on_updates(updates.select(chosen.tolist()), known)
        return replace(trained, updates=_replaced(updates, chosen.tolist(), forged))


def _replaced(
    updates: CohortUpdate, chosen: list[int], forged: CohortUpdate
) -> CohortUpdate:
    """Return updates with some clients' replaced.

    What is not finite is sent as the largest float: compressors take finite values, and
    the server refuses either.
    """
    most = torch.finfo(torch.float32).max
    sent = [updates[index] for index in range(len(updates))]
    theta = updates.theta.clone()
    theta[chosen] = forged.theta.nan_to_num(most, most, -most)
    for place, index in enumerate(chosen):
        ids, rows = forged[place].ids, forged[place].rows
        sent[index] = RowUpdate(ids, rows.nan_to_num(most, most, -most))
    return CohortUpdate.of(updates.clients, sent, theta)
