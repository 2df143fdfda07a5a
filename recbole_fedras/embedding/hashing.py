"""Hash: items share the rows of a small table, a few each."""

import torch
from torch import Tensor

from recbole_fedras.embedding.base import ItemEmbedding
from recbole_fedras.rng import Stream, generator
from recbole_fedras.theta import Theta

#: A prime far above any number of items.
PRIME = 2**61 - 1


class Hash(ItemEmbedding):
    """Hashing: ``C_i`` is the mean of rows ``((a_j i + b_j) mod p) mod m`` of m x d.

    Source: FedPEFT (AAAI 2026, arXiv 2512.13734), after Tito Svenstrup et al., "Hash
    embeddings" (NeurIPS 2017), with a universal family of hash functions.

    Parameters
    ----------
    hash_rows : int
        m.
    hash_functions : int
        h, rows per item; two may coincide.

    Notes
    -----
    **Wire**, of all of it: ``4 m d`` bytes.

    **Departures**: FedPEFT's released code hashes with one modulo only, so that items
    share all rows or none; here a and b are drawn for each function. No weights.
    """

    def __init__(
        self,
        n_items: int,
        dim: int,
        base: Tensor | None,
        seed: int,
        hash_rows: int = 512,
        hash_functions: int = 2,
    ) -> None:
        for name, value in (("rows", hash_rows), ("functions", hash_functions)):
            if type(value) is not int or value < 1:
                raise ValueError(
                    f"hash_{name}={value!r} is not allowed; it must be an integer >= 1"
                )
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
        super().__init__(n_items, dim, base, members, dim)
        self._n_rows = hash_rows

    @property
    def n_rows(self) -> int:
        """Return m."""
        return self._n_rows

    def compose(self, parts: Tensor, theta: Theta) -> Tensor:
        """Return the mean of an item's rows."""
        return parts.mean(dim=2)
