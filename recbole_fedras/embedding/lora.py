"""LoRA: items share a few directions, each has its own few coordinates."""

from math import inf

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.embedding.base import ItemEmbedding
from recbole_fedras.errors import ConfigError
from recbole_fedras.numeric.theta import Theta


class LoRA(ItemEmbedding):
    """Low rank: ``C_i = (alpha / r) B a_i``, A (N x r) the table, B (d x r) beside it.

    Source: Yuan et al., "Plug-and-Play Parameter-Efficient Tuning of Embeddings for
    Federated Recommendation" (FedPEFT, AAAI 2026, arXiv 2512.13734), after Hu et al.,
    "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022). B is zero at
    first, A random.

    Parameters
    ----------
    item_rank : int
        r.
    item_alpha : float
        alpha: with ``alpha / r`` the step of C grows, for the same learning rates.

    Notes
    -----
    **Wire**, of all of it: ``4 r (N + d)`` bytes; B travels uncompressed with the
    network, A through the compressor.

    **Departures**: the released code of FedPEFT never freezes E0 and does not average
    clients; here E0 is frozen, A is aggregated as items are, B as the network is. The
    factor alpha / r is LoRA's.

    Examples
    --------
    Six items of 4 dimensions, a row of 2 coordinates each; items start as zeros:

    >>> embedding = LoRA(n_items=6, dim=4, base=None, seed=2020, item_rank=2)
    >>> table = embedding.initial_table(np.random.default_rng(0), std=0.01)
    >>> items = torch.tensor([[0, 5]])  # of one client
    >>> parts = table[embedding.members[items]]
    >>> theta = {name: value[None] for name, value in embedding.theta().items()}
    >>> table.shape, embedding.vectors(parts, items, theta).abs().sum()
    (torch.Size([6, 2]), tensor(0.))
    """

    def __init__(
        self,
        n_items: int,
        dim: int,
        base: Tensor | None,
        seed: int,
        item_rank: int = 4,
        item_alpha: float = 16.0,
    ) -> None:
        if type(item_rank) is not int or not 1 <= item_rank <= dim:
            raise ConfigError(
                f"item_rank={item_rank!r} is not allowed; it must be an integer from 1 "
                f"to embedding_size={dim}"
            )
        if type(item_alpha) not in (int, float) or not 0 < item_alpha < inf:
            raise ConfigError(
                f"item_alpha={item_alpha!r} is not allowed; it must be a number > 0"
            )
        super().__init__(n_items, dim, base, torch.arange(n_items)[:, None], item_rank)
        self._scale = item_alpha / item_rank

    def initial_table(self, rng: np.random.Generator, std: float) -> Tensor:
        """Return A: Gaussian, rows of length 1 in the root mean square."""
        values = rng.standard_normal((self.n_rows, self.width))
        return torch.from_numpy(values / self.width**0.5).float()

    def theta(self) -> dict[str, Tensor]:
        """Return B."""
        return {"item_factor": torch.zeros(self.dim, self.width)}

    def compose(self, parts: Tensor, items: Tensor, theta: Theta) -> Tensor:
        """Return ``(alpha / r) A B'``."""
        factor = self._scale * theta["item_factor"]
        return parts[:, :, 0] @ factor.transpose(1, 2)
