"""Compressors: one file per method; ``base`` holds their common interface."""

from recbole_fedras.compressor.base import (
    Budget,
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
)

__all__ = ["Budget", "CohortUpdate", "Compressor", "RoundContext", "RowUpdate"]
