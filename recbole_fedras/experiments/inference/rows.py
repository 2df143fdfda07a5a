"""Attackers that look at which rows a client sends, and how large they are."""

from __future__ import annotations

import numpy as np

from recbole_fedras.experiments.inference.base import (
    Attacker,
    Floats,
    Known,
    Seen,
    spread,
)


class Popularity(Attacker):
    """Knows how often other clients send an item's row, and nothing of this one.

    The control: what another attacker has above it, it has from the client.
    """

    def __init__(self) -> None:
        self._sent: dict[int, Floats] = {}

    def scores(self, seen: Seen, known: Known) -> Floats:
        """Return in how many of the others' updates each item has been."""
        n_items, client = len(seen.base), seen.header.client
        own = self._sent.setdefault(client, np.zeros(n_items))
        own[seen.update.ids.numpy()] += 1
        others = (sent for sent in self._sent.values() if sent is not own)
        return sum(others, start=np.zeros(n_items))


class Presence(Attacker):
    """Takes each item whose row is sent for one of the client's.

    Against this, clients of FedRec send rows of unrated items too (Lin et al., "FedRec:
    Federated Recommendation With Explicit Feedback", IEEE Intelligent Systems 2021;
    read: the abstract). Negatives do as much.
    """

    def scores(self, seen: Seen, known: Known) -> Floats:
        """Return 1 for the rows that are there."""
        return spread(seen, np.zeros(len(seen.update)))


class Recurrence(Presence):
    """Counts in how many updates an item's row is.

    A client's items are in each, negatives and pseudo-items are drawn anew.
    """

    repeated = True


class Norm(Attacker):
    """Takes the rows that move furthest for the client's.

    One of its items is in every local epoch, a negative by chance.
    """

    def scores(self, seen: Seen, known: Known) -> Floats:
        """Return the norms of rows."""
        return spread(seen, seen.update.rows.double().norm(dim=1).numpy())
