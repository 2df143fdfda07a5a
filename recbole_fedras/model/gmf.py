"""GMF: a weighted product of user and item, the linear part of NeuMF."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.model.settings import ModelConfig
from recbole_fedras.numeric.theta import Theta


class GMF(FederatedRecommender):
    """Generalised matrix factorisation: ``w . (p_u * q_i)``, w shared and averaged.

    Source: He et al., "Neural Collaborative Filtering" (WWW 2017), section 3.2, with
    the logit in place of the probability. w starts as ones: as MF.
    """

    def __init__(self, config: ModelConfig, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.weight = nn.Parameter(torch.ones(self.dim))

    def score(self, user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        """Return ``w . (p_u * q_i)``."""
        return (user_rows * theta["weight"][:, None] * item_rows).sum(-1)

    def score_all(self, user_rows: Tensor, item_table: Tensor, theta: Theta) -> Tensor:
        """Return ``P diag(w) Q'``."""
        return user_rows * theta["weight"] @ item_table.T
