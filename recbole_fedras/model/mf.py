"""MF: matrix factorisation, the dot product of user and item (FedMF)."""

from torch import Tensor

from recbole_fedras.model.base import FederatedRecommender, Theta


class MF(FederatedRecommender):
    """FedMF: private user vectors, a shared item table, no network.

    Source: Chai et al., "Secure Federated Matrix Factorization" (2020), with implicit
    feedback and logits as in FedRAS (KDD 2025, section 3).
    """

    @staticmethod
    def score(user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        """Return ``p_u . q_i``."""
        return (user_rows * item_rows).sum(-1)

    @classmethod
    def score_all(cls, user_rows: Tensor, item_table: Tensor, theta: Theta) -> Tensor:
        """Return ``P Q'``."""
        return user_rows @ item_table.T
