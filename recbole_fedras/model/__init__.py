"""Models: RecBole recommenders that say what is private and what is shared."""

from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.model.mf import MF
from recbole_fedras.model.ncf import NCF

__all__ = ["MF", "NCF", "FederatedRecommender"]
