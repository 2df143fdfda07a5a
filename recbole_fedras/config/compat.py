"""The few shims that RecBole 1.2.1 needs on today's numpy, scipy, torch and hyperopt.

Each is a context: it holds while RecBole is used, and nothing of it stays behind.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from traceback import walk_tb
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.sparse import dok_matrix

from recbole_fedras.errors import ConfigError, DataError

#: Names that RecBole reads, gone from numpy 1.24 or 2.0.
_NUMPY_NAMES = {
    "bool": np.bool_,
    "float": np.float64,
    "long": np.int_,
    "str": np.str_,
}

_PACKAGES = ("recbole", __name__.partition(".")[0])

#: pandas 2 warns of RecBole's chained fillna, which pandas < 3 still carries out.
_PANDAS_WARNINGS = (".*inplace method.*", ".*Downcasting object dtype.*")


@contextmanager
def recbole() -> Iterator[None]:
    """Give RecBole what it expects, where it is missing; contexts may be nested.

    Configurations, :func:`recbole_fedras.quick_start.prepare_data` and the federated
    trainer use it by themselves. It is needed around RecBole's own code, as its
    ``Trainer``.
    """
    with ExitStack() as shims, warnings.catch_warnings():
        for name, value in _NUMPY_NAMES.items():
            if name not in vars(np):
                shims.enter_context(_lent(np, name, value))
        if not hasattr(dok_matrix, "_update"):  # LightGCN, NGCF; gone from scipy 1.13
            shims.enter_context(_lent(dok_matrix, "_update", _dok_update))
        for message in _PANDAS_WARNINGS:
            warnings.filterwarnings(
                "ignore", message, FutureWarning, module=r"recbole\.data\."
            )
        yield


@contextmanager
def trusted_checkpoints() -> Iterator[None]:
    """Let RecBole's Trainer load the checkpoints that it wrote itself.

    They hold its pickled Config, which ``torch.load`` refuses since torch 2.6. Ours are
    plain and never loaded this way.
    """
    switch = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    with warnings.catch_warnings(), patch.dict(os.environ, {switch: "1"}):
        warnings.filterwarnings("ignore", f".*{switch}.*", UserWarning)
        yield


@contextmanager
def hyper_tuning() -> Iterator[None]:
    """Let RecBole's exhaustive search give hyperopt the generator that it asks for.

    Since 0.2.7 hyperopt draws from ``numpy.random.Generator``. RecBole's search takes
    no generator of the caller's, so that a ``HyperTuning`` must be *made* and run
    inside of this context.
    """
    from recbole.trainer import hyper_tuning as module

    modern = _drawing_anew(module.exhaustive_search)
    with patch.object(module, "exhaustive_search", modern):
        yield


@contextmanager
def metrics(
    found: Mapping[str, type], make: Callable[[str, type, Any], Any]
) -> Iterator[None]:
    """Let RecBole find users' metrics by name, where its configuration names them.

    Parameters
    ----------
    found : mapping of str to type
        Classes by name.
    make : callable
        Makes an object of a name, its class and RecBole's configuration.
    """
    from recbole.evaluator import register

    named = {name.lower(): (name, metric) for name, metric in found.items()}
    lent: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (register.metrics_dict, {key: partial(make, *of) for key, of in named.items()}),
        (register.metric_types, _attribute("metric_type", found)),
        (register.metric_information, _attribute("metric_need", found)),
    ]
    before = list(register.smaller_metrics)
    with ExitStack() as stack:
        for table, values in lent:
            stack.enter_context(patch.dict(table, values))
        smaller = _attribute("smaller", found)
        register.smaller_metrics += [key for key, value in smaller.items() if value]
        try:
            yield
        finally:
            register.smaller_metrics[:] = before


def _attribute(name: str, found: Mapping[str, type]) -> dict[str, Any]:
    return {key.lower(): getattr(metric, name) for key, metric in found.items()}


@contextmanager
def errors_as(kind: type[ConfigError | DataError], what: str) -> Iterator[None]:
    """Raise what RecBole's own checks raise as an error of ours."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError) as error:
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        deepest = [name for name in map(package_of, frames) if name in _PACKAGES][-1]
        if deepest != "recbole":
            raise
        raise kind(f"{what}: {error}") from error


def package_of(frame: FrameType | None) -> str:
    """Return the top-level package whose code a frame runs."""
    name = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    return name.partition(".")[0]


def find_recboles_model(name: str) -> type:
    """Return RecBole's model of a name, and leave torch as it was.

    RecBole looks through all its modules; one of them (SINE) switches autograd's
    anomaly detection on, which slows all training down and fails where it diverges.
    """
    from recbole.utils import get_model

    with torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled()):
        model: type = get_model(name)
    return model


@contextmanager
def _lent(owner: Any, name: str, value: Any) -> Iterator[None]:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def _drawing_anew(search: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(search)
    def modern(*args: Any, **kwargs: Any) -> Any:
        with patch.object(np.random, "RandomState", _generator):
            return search(*args, **kwargs)

    return modern


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _dok_update(self: Any, data: Mapping[tuple[int, int], float]) -> None:
    """Set entries without bounds checks, as ``dok_matrix._update`` did."""
    self._dict.update(data)
