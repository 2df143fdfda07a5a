"""What held-out items are ranked among: items drawn, or those that a file lists."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.data.negatives import Line, read_negatives
from recbole_fedras.errors import DataError

Ints = NDArray[np.int64]


class Negatives(Protocol):
    """Knows every user's negatives, so many for each held-out item."""

    size: int

    def __call__(self, user: int, n_held_out: int, rng: np.random.Generator) -> Ints:
        """Return distinct items that a user never interacted with, by RecBole's id."""


class DrawnNegatives:
    """Items drawn without replacement from those that a user never interacted with.

    Parameters
    ----------
    dataset : recbole.data.dataset.Dataset
    interacted : sequence of ndarray
        All items of each user, by RecBole's id, increasing.
    size : int
        For each held-out item; fewer where there are not so many.
    """

    def __init__(self, dataset: Any, interacted: Sequence[Ints], size: int) -> None:
        self._dataset, self._interacted, self.size = dataset, interacted, size

    def __call__(self, user: int, n_held_out: int, rng: np.random.Generator) -> Ints:
        """Draw them.

        Raises
        ------
        DataError
            If there are fewer than for one held-out item.
        """
        own, size = self._interacted[user], self.size
        n_others = self._dataset.item_num - 1 - len(own)
        if n_others < size:
            name = str(self._dataset.id2token(self._dataset.uid_field, user))
            raise DataError(
                f"eval_args mode uni{size}: user {name!r} has only {n_others} items "
                f"that they never interacted with; choose uni1 to uni{n_others} or "
                "full"
            )
        places = rng.choice(n_others, min(size * n_held_out, n_others), replace=False)
        # Of the others in increasing order, which are never listed: own item k (from 0)
        # has own[k] - 1 - k of them before it.
        others_before = own - 1 - np.arange(len(own))
        before = np.searchsorted(others_before, places, side="right")
        return np.asarray(1 + places + before, np.int64)


class ListedNegatives:
    """Items that a file lists for each held-out interaction.

    An item that stands twice in a line counts once, as in NCF's own evaluation. A user
    with several held-out items has the negatives of all of their lines.

    Parameters
    ----------
    dataset : recbole.data.dataset.Dataset
        The held-out part.
    interacted : sequence of ndarray
        All items of each user, by RecBole's id, increasing.
    size : int
        In each line.
    path, encoding : str

    Raises
    ------
    DataError
        For a line of what is not held out, or of another size; for an item that is not
        in the dataset, or that the user interacted with; and for a held-out interaction
        without a line, or with two.
    """

    def __init__(
        self,
        dataset: Any,
        interacted: Sequence[Ints],
        size: int,
        path: str,
        encoding: str,
    ) -> None:
        self._dataset, self._interacted, self.size = dataset, interacted, size
        users, items = dataset.uid_field, dataset.iid_field
        feat = dataset.inter_feat
        pairs = zip(feat[users].tolist(), feat[items].tolist(), strict=True)
        without = set(pairs)
        self._negatives: defaultdict[int, set[int]] = defaultdict(set)
        for line in read_negatives(path, encoding):
            pair = self._number(users, line.user), self._number(items, line.item)
            if pair not in without:
                raise DataError(
                    f"{line.where}: ({line.user},{line.item}) is not held out here, or "
                    "stands twice; the file must be of this very split"
                )
            without.remove(pair)
            self._negatives[pair[0]] |= self._numbers(pair[0], line)
        if without:
            user, item = min(without)
            raise DataError(
                f"{path} has no line for {len(without)} held-out interactions, such as "
                f"({dataset.id2token(users, user)},{dataset.id2token(items, item)}); "
                "the file must be of this very split"
            )

    def _number(self, field: str, token: str) -> int:
        """Return RecBole's id, 0 for what it does not know."""
        return int(self._dataset.field2token_id[field].get(token, 0))

    def _numbers(self, user: int, line: Line) -> set[int]:
        if len(line.negatives) != self.size:
            raise DataError(
                f"{line.where}: {len(line.negatives)} negatives, but eval_args mode is "
                f"uni{self.size}; set it to uni{len(line.negatives)} if all lines "
                "have so many"
            )
        numbers = [
            self._number(self._dataset.iid_field, name) for name in line.negatives
        ]
        if 0 in numbers:
            name = line.negatives[numbers.index(0)]
            raise DataError(f"{line.where}: item {name!r} is not in the dataset")
        own = np.isin(numbers, self._interacted[user])
        if own.any():
            name = line.negatives[int(own.argmax())]
            raise DataError(
                f"{line.where}: user {line.user!r} interacted with item {name!r}, "
                "which is no negative"
            )
        return set(numbers)

    def __call__(self, user: int, n_held_out: int, rng: np.random.Generator) -> Ints:
        """Return them, in order of their numbers."""
        return np.array(sorted(self._negatives[user]), np.int64)
