"""The few shims that RecBole 1.2.1 needs on today's numpy and scipy."""

import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
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


@cache
def trust_recboles_checkpoints() -> None:
    """Let RecBole's Trainer load the checkpoints that it wrote itself.

    They hold its pickled Config, which ``torch.load`` refuses since torch 2.6. Ours are
    plain and never loaded this way.
    """
    from recbole.trainer import Trainer

    for name in ("evaluate", "resume_checkpoint"):
        setattr(Trainer, name, _trusting(getattr(Trainer, name)))


def find_recboles_model(name: str) -> type:
    """Return RecBole's model of a name, and leave torch as it was.

    RecBole looks through all its modules; one of them (SINE) switches autograd's
    anomaly detection on, which slows all training down and fails where it diverges.
    """
    from recbole.utils import get_model

    with torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled()):
        model: type = get_model(name)
    return model


@cache
def let_hyperopt_draw() -> None:
    """Let RecBole's exhaustive search give hyperopt the generator that it now asks for.

    Since 0.2.7 hyperopt draws from ``numpy.random.Generator``.
    """
    from recbole.trainer import hyper_tuning

    search = hyper_tuning.exhaustive_search

    @wraps(search)
    def modern(*args: Any, **kwargs: Any) -> Any:
        with patch.object(np.random, "RandomState", _generator):
            return search(*args, **kwargs)

    hyper_tuning.exhaustive_search = modern


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _trusting(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def trusting(self: Any, *args: Any, **kwargs: Any) -> Any:
        if type(self).__module__.startswith("recbole_fedras."):
            return method(self, *args, **kwargs)
        switch = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
        with warnings.catch_warnings(), patch.dict(os.environ, {switch: "1"}):
            warnings.filterwarnings("ignore", f".*{switch}.*", UserWarning)
            return method(self, *args, **kwargs)

    return trusting


def _dok_update(self: Any, data: Mapping[tuple[int, int], float]) -> None:
    """Set entries without bounds checks, as ``dok_matrix._update`` did."""
    self._dict.update(data)
