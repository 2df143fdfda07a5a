"""The few shims that RecBole 1.2.1 needs on today's numpy and scipy."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import dok_matrix

#: Names that RecBole reads or assigns from, gone from numpy 1.24 or 2.0.
_NUMPY_NAMES = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
}


def apply() -> None:
    """Put back what RecBole expects, where it is missing. Safe to call again."""
    for name, value in _NUMPY_NAMES.items():
        if name not in vars(np):
            setattr(np, name, value)
    if not hasattr(dok_matrix, "_update"):  # LightGCN, NGCF; gone from scipy 1.13
        dok_matrix._update = _dok_update
    # pandas 2 warns of RecBole's chained fillna, which pandas < 3 still carries out.
    for message in (".*inplace method.*", ".*Downcasting object dtype.*"):
        warnings.filterwarnings(
            "ignore", message, FutureWarning, module=r"recbole\.data\."
        )


def _dok_update(self: Any, data: Mapping[tuple[int, int], float]) -> None:
    """Set entries without bounds checks, as ``dok_matrix._update`` did."""
    self._dict.update(data)
