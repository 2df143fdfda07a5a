"""Threads over clients, whose kernels are single-threaded and hold no lock."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

import torch
from joblib import cpu_count
from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")

_pool: ContextVar[ThreadPoolExecutor | None] = ContextVar("pool", default=None)


def thread_map(
    function: Callable[..., Result], *iterables: Iterable[Any]
) -> list[Result]:
    """Map like :func:`map`, in the threads that :func:`threads` allows; in order."""
    pool = _pool.get()
    return list((pool.map if pool else map)(function, *iterables))


@cache
def _thread_pools() -> ThreadpoolController:
    """Find the libraries that have threads, once: that takes milliseconds."""
    importlib.import_module("sklearn.cluster")  # has an OpenMP of its own
    return ThreadpoolController()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let scikit-learn's k-means use one thread: more add up in no certain order.

    OpenMP's number of threads is the calling thread's own.
    """
    with _thread_pools().limit(limits=1, user_api="openmp"):
        yield


@contextmanager
def threads(n_jobs: int) -> Iterator[None]:
    """Let :func:`thread_map` use ``n_jobs`` threads (-1: one per core), nobody else.

    The pools of torch and BLAS split small operations, stall when a core is busy
    elsewhere, and may round differently with another number of threads.
    """
    n_torch = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            _thread_pools().limit(limits=1, user_api="blas"),
            ThreadPoolExecutor(cpu_count() if n_jobs == -1 else n_jobs) as pool,
        ):
            token = _pool.set(pool if n_jobs != 1 else None)
            try:
                yield
            finally:
                _pool.reset(token)
    finally:
        torch.set_num_threads(n_torch)
