"""RQ: an item is the sum of one row from each of a few small codebooks."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.embedding.base import ItemEmbedding
from recbole_fedras.embedding.quantizer import residual_kmeans, rq_vae
from recbole_fedras.errors import ConfigError
from recbole_fedras.numeric.theta import Theta
from recbole_fedras.wire.payload import Payload


class RQ(ItemEmbedding):
    """Residual quantisation: ``C_i = sum_l codebook_l[code_il]``, L codebooks of K x d.

    Source: Yuan et al., "Plug-and-Play Parameter-Efficient Tuning of Embeddings for
    Federated Recommendation" (FedPEFT, AAAI 2026, arXiv 2512.13734), after the RQ-VAE
    of Lee et al., "Autoregressive Image Generation using Residual Quantization" (CVPR
    2022). The server finds codes once: with an RQ-VAE of the items' features, or with
    residual k-means of their warmed-up embeddings. Codebooks are trained federatedly.

    Parameters
    ----------
    rq_levels : int
        L.
    rq_codes : int
        K; at most as many as there are items.
    rq_epochs : int
        Of the RQ-VAE's training.

    Notes
    -----
    **Wire**, of all of it: ``4 L K d`` bytes. Once to each client: the codes, ``N L
    ceil(log2 K)`` bits, and the codebooks that they were found with if these are what
    it starts from, ``4 L K d`` bytes.

    **Departures**: the released code of FedPEFT never trains the codebooks; here they
    are the table. Without a base they start as residual k-means found them, or, with
    features, at random: the RQ-VAE's are of another space.

    Examples
    --------
    Eight items of two codebooks of 4 rows, fitted to warmed-up vectors:

    >>> warmed_up = np.random.default_rng(0).random((8, 3)).astype(np.float32)
    >>> embedding = RQ(8, dim=3, base=None, seed=2020, rq_levels=2, rq_codes=4)
    >>> embedding.fit(warmed_up, features=False)
    >>> table = embedding.initial_table(np.random.default_rng(0), std=0.01)
    >>> items = torch.tensor([[0, 5]])  # of one client
    >>> parts = table[embedding.members[items]]
    >>> table.shape, embedding.vectors(parts, items, {}).shape
    (torch.Size([8, 3]), torch.Size([1, 2, 3]))
    """

    fitted = True

    def __init__(
        self,
        n_items: int,
        dim: int,
        base: Tensor | None,
        seed: int,
        rq_levels: int = 4,
        rq_codes: int = 256,
        rq_epochs: int = 100,
    ) -> None:
        given = {"levels": rq_levels, "codes": rq_codes, "epochs": rq_epochs}
        for name, value in given.items():
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"rq_{name}={value!r} is not allowed; it must be an integer >= 1"
                )
        codes = torch.zeros(n_items, rq_levels, dtype=torch.int64)
        super().__init__(n_items, dim, base, codes, dim)
        self._n_codes, self._epochs, self._seed = rq_codes, rq_epochs, seed
        self._codebooks: Tensor | None = None

    @property
    def n_rows(self) -> int:
        """Return L K."""
        return self.n_parts * self._n_codes

    def validate(self) -> None:
        """Require as many items as codes."""
        if self._n_codes > self.n_items:
            raise ConfigError(
                f"rq_codes={self._n_codes} is not allowed; it must be at most the "
                f"number of items, {self.n_items}"
            )

    def fit(self, source: NDArray[np.float32], *, features: bool) -> None:
        """Find codes."""
        shape = self.n_parts, self._n_codes, self._seed
        if features:
            codes = rq_vae(source, *shape, self.dim, self._epochs)
        else:
            codes, codebooks = residual_kmeans(source, *shape)
            if self.base is None:
                self._codebooks = torch.from_numpy(codebooks).flatten(0, 1)
        self._set_codes(codes)

    def _set_codes(self, codes: NDArray[np.int64]) -> None:
        """Make codes the rows of one table, in which codebooks lie below each other."""
        rows = codes + np.arange(self.n_parts) * self._n_codes
        self.members = torch.from_numpy(rows)

    def put_once(self, payload: Payload) -> None:
        """Add codes, and the codebooks to start from if no seed draws them."""
        codes = self.members.numpy() % self._n_codes
        payload.put_ints("codes", codes, self._n_codes, part="once")
        if self._codebooks is not None:
            payload.put_floats("codebooks", self._codebooks.numpy(), part="once")

    def get_once(self, payload: Payload) -> None:
        """Take them."""
        self._set_codes(
            payload.ints("codes", self._n_codes, self.n_items, self.n_parts)
        )
        if "codebooks" in payload:
            codebooks = payload.floats("codebooks", self.n_rows, self.width)
            self._codebooks = torch.from_numpy(codebooks.copy())

    def initial_table(self, rng: np.random.Generator, std: float) -> Tensor:
        """Return the codebooks found, or what others start from."""
        if self._codebooks is None:
            return super().initial_table(rng, std)
        return self._codebooks

    def compose(self, parts: Tensor, items: Tensor, theta: Theta) -> Tensor:
        """Return the sum over levels."""
        return parts.sum(dim=2)
