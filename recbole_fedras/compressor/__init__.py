"""Compressors: one file per method; ``base`` holds their common interface."""

from recbole_fedras.compressor.base import (
    Budget,
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
)
from recbole_fedras.compressor.contract import check_compressor

__all__ = [
    "Budget", "CohortUpdate", "Compressor", "RoundContext", "RowUpdate",
    "check_compressor",
]  # fmt: skip
