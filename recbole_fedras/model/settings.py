"""What a model is configured by, and what it asks of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.embedding import ItemEmbedding


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What every federated model is made with.

    Attributes
    ----------
    dim : int
        Dimensions of users and items.
    init_std : float
        Standard deviation of initial embeddings.
    seed : int
    label_field : str
        RecBole's field of labels, for central training.
    warmup_rounds : int
        Rounds that train whole item vectors before an item embedding begins; or 0.
    """

    dim: int
    init_std: float
    seed: int
    label_field: str
    warmup_rounds: int


class ModelConfig(Protocol):
    """A configuration as a model sees it; users' models may read keys of theirs."""

    def __getitem__(self, key: str, /) -> Any:
        """Return the value of a key."""

    def model_settings(self) -> ModelSettings:
        """Return what every model is made with."""

    def make_item_embedding(
        self, n_items: int, dim: int, source: NDArray[np.float32] | None = None
    ) -> ItemEmbedding | None:
        """Build what items are made of; None for a row each."""

    def item_embedding_of(self, dataset: Any) -> ItemEmbedding | None:
        """Build it for a RecBole dataset, without a warm-up."""
