"""What shards agree on before the first round: items by token, clients by number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.data.clients import ClientData
from recbole_fedras.errors import DataError

Ints = NDArray[np.int64]


class Catalogue:
    """Items by token: every shard numbers them alike, from 0.

    RecBole numbers the tokens of the file that it loads by first appearance, so that
    shards with other users' files would give one item other numbers.

    Parameters
    ----------
    tokens : sequence of str
        In the order of their numbers; distinct and not empty.

    Raises
    ------
    DataError
        If a token stands twice, is empty or has two lines.

    Examples
    --------
    >>> catalogue = Catalogue(["Heat", "Alien", "Big"])
    >>> catalogue.numbers_of(["Big", "Heat"]).tolist()
    [2, 0]
    >>> Catalogue.from_bytes(catalogue.to_bytes()).digest == catalogue.digest
    True
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = list(tokens)
        self._numbers = {token: number for number, token in enumerate(self.tokens)}
        for number, token in enumerate(self.tokens):
            if not token or "\n" in token or self._numbers[token] != number:
                raise DataError(
                    f"catalogue: {token!r} is empty, has two lines or stands twice"
                )

    def __len__(self) -> int:
        return len(self.tokens)

    def numbers_of(self, tokens: Iterable[str]) -> Ints:
        """Return the numbers of tokens, shape (n,).

        Raises
        ------
        DataError
            That names the first token that is not in the catalogue.
        """
        try:
            return np.array([self._numbers[token] for token in tokens], np.int64)
        except KeyError as error:
            raise DataError(
                f"item {error.args[0]!r} is not in the catalogue of {len(self)} items; "
                "leave its interactions out, or agree on a catalogue that has it"
            ) from error

    @cached_property
    def digest(self) -> str:
        """What two shards compare to know that they have the same catalogue."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Write a token a line, in UTF-8."""
        return "\n".join(self.tokens).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Catalogue:
        """Read what :meth:`to_bytes` wrote.

        Raises
        ------
        DataError
            If it is not UTF-8, or no catalogue.
        """
        try:
            return cls(data.decode().split("\n"))
        except UnicodeDecodeError as error:
            raise DataError(f"catalogue: not UTF-8: {error}") from error


def number_clients(sizes: Sequence[int], block: int) -> list[Ints]:
    """Give the clients of shards numbers, each shard whole blocks of its own.

    Clients of a block train as one group. So a shard begins at a multiple of ``block``,
    and numbers may be left over behind it.

    Parameters
    ----------
    sizes : sequence of int
        Clients of each shard.
    block : int
        ``Agreement.block``.

    Returns
    -------
    list of ndarray of int64

    Examples
    --------
    >>> [numbers.tolist() for numbers in number_clients([3, 2], block=4)]
    [[0, 1, 2], [4, 5]]
    """
    numbers: list[Ints] = []
    first = 0
    for size in sizes:
        numbers.append(np.arange(first, first + size))
        first += -(-size // block) * block
    return numbers


def clients_of_shard(
    users: Sequence[str],
    items: Sequence[str],
    catalogue: Catalogue,
    numbers: Ints,
    n_clients: int,
) -> tuple[ClientData, list[str]]:
    """Group a shard's interactions by client, its users numbered in order of token.

    Parameters
    ----------
    users, items : sequence of str
        Tokens of each interaction.
    catalogue : Catalogue
    numbers : ndarray of int64
        The shard's, of :func:`number_clients`; one for each user.
    n_clients : int
        Numbers in all.

    Returns
    -------
    ClientData
        Of all clients; those of other shards have nothing.
    list of str
        Users, in the order of their numbers.

    Raises
    ------
    DataError
        If an item is not in the catalogue, or there are not as many numbers as users.
    """
    tokens, places = np.unique(np.asarray(users, str), return_inverse=True)
    if len(tokens) != len(numbers):
        raise DataError(f"a shard of {len(tokens)} users has {len(numbers)} numbers")
    data = ClientData.from_pairs(
        numbers[places], catalogue.numbers_of(items), n_clients, len(catalogue)
    )
    return data, tokens.tolist()
