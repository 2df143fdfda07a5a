"""Full: every item has a row of its own; with a base, the control of the others."""

import torch
from torch import Tensor

from recbole_fedras.embedding.base import ItemEmbedding
from recbole_fedras.numeric.theta import Theta


class Full(ItemEmbedding):
    """A table of one row per item: what every federated recommender exchanges.

    **Wire**, of a whole table: ``4 N d`` bytes.

    Examples
    --------
    >>> import numpy as np
    >>> embedding = Full(n_items=6, dim=4, base=None, seed=2020)
    >>> table = embedding.initial_table(np.random.default_rng(0), std=0.01)
    >>> items = torch.tensor([[0, 5]])  # of one client
    >>> vectors = embedding.vectors(table[embedding.members[items]], items, {})
    >>> table.shape, bool((vectors[0, 1] == table[5]).all())
    (torch.Size([6, 4]), True)
    """

    def __init__(self, n_items: int, dim: int, base: Tensor | None, seed: int) -> None:
        super().__init__(n_items, dim, base, torch.arange(n_items)[:, None], dim)

    def compose(self, parts: Tensor, items: Tensor, theta: Theta) -> Tensor:
        """Return the rows."""
        return parts[:, :, 0]
