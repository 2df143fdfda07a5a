"""Threads over clients, whose long kernels are single-threaded and hold no lock."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import chain, starmap
from typing import Any, TypeVar

import torch
from joblib import cpu_count
from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")

#: Runs of tasks for each thread, about: few enough to cost nothing, and enough to be
#: shared out evenly, whatever they take.
RUNS = 8

#: Threads, and how many they are.
_pool: ContextVar[tuple[ThreadPoolExecutor, int] | None]
_pool = ContextVar("pool", default=None)

#: Seconds after which a thread asks another for the interpreter's lock. Clients take
#: less than a millisecond, so Python's own 5 ms would let one wait for dozens of them.
_SWITCH = 1e-4


def thread_map(
    function: Callable[..., Result], *iterables: Iterable[Any]
) -> list[Result]:
    """Map like :func:`map`, in the threads that :func:`threads` allows; in order.

    Threads take runs of neighbours, as to hand one over takes as long as a small task.
    """
    there = _pool.get()
    if there is None:
        return list(map(function, *iterables))
    pool, n_threads = there
    tasks = list(zip(*iterables, strict=True))
    size = max(1, len(tasks) // (RUNS * n_threads))
    runs = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    done = pool.map(lambda run: list(starmap(function, run)), runs)
    return list(chain.from_iterable(done))


def mapper(in_threads: bool) -> Callable[..., Iterable[Any]]:
    """Return :func:`thread_map`, or :func:`map`."""
    return thread_map if in_threads else map


@cache
def _thread_pools() -> ThreadpoolController:
    """Find the libraries that have threads, once: that takes milliseconds.

    The BLAS of numpy, scipy and torch are loaded by then: the package imports them.
    """
    return ThreadpoolController()


@cache
def _thread_pools_of_sklearn() -> ThreadpoolController:
    """Find them once scikit-learn is there, which has an OpenMP of its own."""
    importlib.import_module("sklearn.cluster")
    return ThreadpoolController()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let scikit-learn's k-means use one thread: more add up in no certain order.

    OpenMP's number of threads is the calling thread's own.
    """
    with _thread_pools_of_sklearn().limit(limits=1, user_api="openmp"):
        yield


@contextmanager
def threads(n_jobs: int) -> Iterator[None]:
    """Let :func:`thread_map` use ``n_jobs`` threads (-1: one per core), nobody else.

    The pools of torch and BLAS split small operations, stall when a core is busy
    elsewhere, and may round differently with another number of threads. That, and how
    soon threads ask for the interpreter's lock, is of the whole process.
    """
    n_torch, n_threads = torch.get_num_threads(), n_jobs
    if n_jobs == -1:
        n_threads = cpu_count()
    switch = sys.getswitchinterval()
    torch.set_num_threads(1)
    if n_jobs != 1:
        sys.setswitchinterval(_SWITCH)
    try:
        with (
            _thread_pools().limit(limits=1, user_api="blas"),
            ThreadPoolExecutor(n_threads) as pool,
        ):
            token = _pool.set((pool, n_threads) if n_jobs != 1 else None)
            try:
                yield
            finally:
                _pool.reset(token)
    finally:
        sys.setswitchinterval(switch)
        torch.set_num_threads(n_torch)
