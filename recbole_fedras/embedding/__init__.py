"""Item embeddings: what items are made of, one file per way."""

from recbole_fedras.embedding.base import ItemEmbedding

__all__ = ["ItemEmbedding"]
