"""An attacker that knows the seed: it draws a client's negatives again."""

from __future__ import annotations

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from recbole_fedras.data.clients import Ints
from recbole_fedras.experiments.inference.base import Attacker, Floats, Known, Seen
from recbole_fedras.numeric.rng import Stream, counter_key, mix, uniform


class Replay(Attacker):
    """Draws the negatives that a client drew: rows that it did not draw are its items.

    In a simulation all random numbers follow from the seed, which everybody knows. A
    negative that is one of the client's items is drawn again (``draw_samples``); so the
    server knows the sequence but not where an epoch ends, and finds that by the rows
    that are there: each item of an epoch's sequence is. It needs row ids only. Where
    clients draw by a seed of their own (``client_seed``) it finds nothing, and is no
    better than :class:`Recurrence`.

    Source: ours.
    """

    repeated = True

    def scores(self, seen: Seen, known: Known) -> Floats:
        """Return 0 for absent rows, 1 for rows that were drawn, 2 for others."""
        scores = np.zeros(len(seen.base))
        scores[seen.update.ids.numpy()] = 2
        drawn = _drawn(scores > 0, seen, known)
        scores[drawn[scores[drawn] > 0]] = 1
        return scores


def _drawn(sent: NDArray[np.bool_], seen: Seen, known: Known) -> Ints:
    """Return the items of the client's sequence, as far as epochs are found in it."""
    training, header = known.training, seen.header
    n_items, count = len(sent), known.n_interactions(header)
    negatives = count * training.n_negatives
    shuffle = negatives - 1 if training.pairwise else count
    key = counter_key(known.agreement.federation.seed, Stream.SAMPLES, header.round)
    # An item is drawn again as often as it is one of the client's: seldom.
    length = 2 * training.local_epochs * (negatives + shuffle)
    sequence = _sequence(key, header.client, n_items, length)
    ends = _ends_of_runs(sent[sequence])
    found, start = [], 0
    for _ in range(training.local_epochs):
        fits = np.flatnonzero(ends[start:] - np.arange(start, length) >= negatives)
        if not len(fits):
            break
        start += int(fits[0])
        found.append(sequence[start : ends[start]])
        start += negatives + shuffle
    return np.concatenate(found) if found else np.arange(0)


def _ends_of_runs(inside: NDArray[np.bool_]) -> Ints:
    """Return for each place the first from there on that is not inside."""
    places = np.where(inside, len(inside), np.arange(len(inside)))
    return np.minimum.accumulate(places[::-1])[::-1]


@njit(cache=True)
def _sequence(key, client: int, n_items: int, length: int) -> Ints:  # type: ignore[no-untyped-def]
    """Return the items that a client's draws come to, shape (length,)."""
    own_key = mix(key ^ mix(uint64(client)))
    items = np.empty(length, np.int64)
    for place in range(length):
        items[place] = int(uniform(own_key, place) * n_items)
    return items
