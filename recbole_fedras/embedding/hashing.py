"""Hash: items share the rows of a small table, a few each."""

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.embedding.base import ItemEmbedding
from recbole_fedras.errors import ConfigError
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.numeric.theta import Theta

#: The Mersenne prime 2^61 - 1, far above any number of items.
PRIME = 2**61 - 1


class Hash(ItemEmbedding):
    """Hashing: ``C_i`` is the mean of rows ``((a_j i + b_j) mod p) mod m`` of m x d.

    Or, with learned weights, their sum, by weights of each item's own.

    Source: Yuan et al., "Plug-and-Play Parameter-Efficient Tuning of Embeddings for
    Federated Recommendation" (FedPEFT, AAAI 2026, arXiv 2512.13734), after Svenstrup et
    al., "Hash Embeddings for Efficient Word Representations" (NIPS 2017), with a
    universal family of hash functions.

    Parameters
    ----------
    hash_rows : int
        m.
    hash_functions : int
        h, rows per item; two may coincide.
    hash_weights : bool
        Whether items learn the weights of their rows, from ``1 / h``.

    Notes
    -----
    **Wire**, of all of it: ``4 m d`` bytes. Weights lie in further rows of the table,
    less ``1 / h``, those of ``floor(d / h)`` items in each:
    ``4 d ceil(N / floor(d / h))`` bytes more, of which a client sends the rows that it
    touched.

    **Departures**: FedPEFT's released code hashes with one modulo only, so that items
    share all rows or none; here a and b are drawn for each function. Hash embeddings
    hash their weights too; here each item has its own. Compressors and aggregation see
    a row of weights as one vector, whoever's they are.

    Examples
    --------
    A thousand items of 16 rows, two each:

    >>> embedding = Hash(n_items=1000, dim=4, base=None, seed=2020, hash_rows=16)
    >>> table = embedding.initial_table(np.random.default_rng(0), std=0.01)
    >>> items = torch.tensor([[0, 999]])  # of one client
    >>> parts = table[embedding.members[items]]
    >>> table.shape, embedding.vectors(parts, items, {}).shape
    (torch.Size([16, 4]), torch.Size([1, 2, 4]))
    """

    def __init__(
        self,
        n_items: int,
        dim: int,
        base: Tensor | None,
        seed: int,
        hash_rows: int = 512,
        hash_functions: int = 2,
        hash_weights: bool = False,
    ) -> None:
        for name, value in (("rows", hash_rows), ("functions", hash_functions)):
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"hash_{name}={value!r} is not allowed; it must be an integer >= 1"
                )
        if type(hash_weights) is not bool:
            raise ConfigError(
                f"hash_weights={hash_weights!r} is not allowed; it must be True or "
                "False"
            )
        if hash_weights and hash_functions > dim:
            raise ConfigError(
                f"hash_functions={hash_functions} is not allowed; it must be at most "
                f"embedding_size={dim} with hash_weights"
            )
        # h functions of a universal family, i -> ((a i + b) mod p) mod m, a not 0. In
        # Python's integers: a i needs more than 64 bits.
        rng = generator(seed, Stream.HASHES)
        factors = rng.integers(1, PRIME, hash_functions).tolist()
        shifts = rng.integers(0, PRIME, hash_functions).tolist()
        functions = list(zip(factors, shifts, strict=True))
        members = torch.tensor(
            [
                [(a * item + b) % PRIME % hash_rows for a, b in functions]
                for item in range(n_items)
            ]
        )
        self._n_hashed, self._h = hash_rows, hash_functions
        self._weighted = hash_weights
        # An item's weights lie together in one further row, which is its last member.
        if hash_weights:
            row = hash_rows + torch.arange(n_items) // (dim // hash_functions)
            members = torch.cat([members, row[:, None]], dim=1)
        super().__init__(n_items, dim, base, members, dim)

    @property
    def _items_per_row(self) -> int:
        """Items whose weights lie in a row."""
        return self.dim // self._h

    @property
    def n_rows(self) -> int:
        """Return m, and rows of weights."""
        if not self._weighted:
            return self._n_hashed
        return self._n_hashed + -(-self.n_items // self._items_per_row)

    def initial_table(self, rng: np.random.Generator, std: float) -> Tensor:
        """Return rows as others start, and weights that make their mean."""
        table = super().initial_table(rng, std)
        table[self._n_hashed :] = 0
        return table

    def compose(self, parts: Tensor, items: Tensor, theta: Theta) -> Tensor:
        """Return the mean of an item's rows, or their weighted sum."""
        if not self._weighted:
            return parts.mean(dim=2)
        # Pick each item's h columns out of the row that it shares. What is kept is the
        # difference to 1 / h, so that a row of zeros makes the mean.
        rows, weights = parts[:, :, :-1], parts[:, :, -1]
        first = items[..., None] % self._items_per_row * self._h
        columns = first + torch.arange(self._h, device=items.device)
        differences = weights.gather(2, columns)
        return ((1 / self._h + differences)[..., None] * rows).sum(dim=2)
