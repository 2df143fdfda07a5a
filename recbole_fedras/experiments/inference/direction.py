"""Attackers that tell by a row's direction whether it was pulled or pushed."""

from __future__ import annotations

import numpy as np

from recbole_fedras.experiments.inference.base import (
    Attacker,
    Floats,
    Known,
    Seen,
    spread,
)


class Direction(Attacker):
    """Finds the client's vector in its update, and which side of it rows moved to.

    The gradient of a dot product's loss by an item is the user's vector times the
    prediction less the label. So all rows of an update lie along one vector, its
    leading right singular vector: the client's items on one side, negatives on the
    other. Which side is which, the number of samples in the header tells: one side has
    as many rows as the client has items. If that is not told, it is the smaller one.

    Source: ours. That the server reconstructs interactions from uploaded gradients is
    known of matrix factorization with squared errors (Mai and Pang, "PrivMVMF", arXiv
    2210.07775; read: the abstract). ``RankOne`` sends just this vector and these sides.

    With a network between user and item (NCF) rows share no one direction, and the
    projection is a guess.
    """

    def scores(self, seen: Seen, known: Known) -> Floats:
        """Return how far each row moved to the side of the client's items."""
        rows = seen.update.rows.double().numpy()
        moved = rows @ np.linalg.eigh(rows.T @ rows)[1][:, -1]
        count = known.n_interactions(seen.header)
        up, down = (abs(int((side * moved > 0).sum()) - count) for side in (1, -1))
        return spread(seen, moved if up <= down else -moved)


class RepeatedDirection(Direction):
    """Adds up what :class:`Direction` finds in all of a client's updates."""

    repeated = True
