"""Separate, seeded random streams: no draw of one purpose ever shifts another."""

import os
from enum import IntEnum
from typing import Any

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray
from scipy.special import ndtri


class Stream(IntEnum):
    """What a random number is drawn for; the values are part of a run's identity."""

    INITIALISATION = 0
    COHORT = 1
    SAMPLES = 2
    COMPRESSOR = 3
    CANDIDATES = 4
    BANDWIDTH = 5
    TIES = 6
    HASHES = 7
    NEWCOMERS = 8
    ATTACK = 9
    PRIVACY = 12
    PSEUDO_ITEMS = 13
    WORLD = 14
    NETWORK = 15


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return the generator of ``stream`` for ``key`` (say round and client).

    Equal arguments give equal numbers on every machine, in any order of calls, so that
    a resumed run, another cohort chunking or an extra evaluation changes nothing.

    Parameters
    ----------
    seed : int
        The run's seed, RecBole's ``seed``.
    stream : Stream
        Purpose of the numbers.
    *key : int
        Non-negative integers that tell the draws of one stream apart.
    """
    return np.random.Generator(np.random.PCG64(_sequence(seed, stream, *key)))


def counter_key(seed: int, stream: Stream, *key: int) -> np.uint64:
    """Return the key of ``stream`` for :func:`uniform`, as good as a generator."""
    state: np.uint64 = _sequence(seed, stream, *key).generate_state(1, np.uint64)[0]
    return state


def _sequence(seed: int, stream: Stream, *key: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(int(stream), *key))


# Constants of their own: numba takes as long to compile ``uint64(30)`` as any call.
_30, _27, _31, _11 = map(np.uint64, (30, 27, 31, 11))
_FIRST, _SECOND = map(np.uint64, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(bits: Any) -> Any:
    """Scramble a uint64, or many, one to one: the finaliser of SplitMix64."""
    bits = (bits ^ (bits >> _30)) * _FIRST
    bits = (bits ^ (bits >> _27)) * _SECOND
    return bits ^ (bits >> _31)


#: The same for a uint64, in compiled code.
mix = njit(inline="always")(_mixed)


@njit(inline="always")
def uniform(key, counter):  # type: ignore[no-untyped-def]
    """Return the number in [0, 1) at a place of a key's sequence, in compiled code.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) by counter: compiled loops inline
    it, where a numpy generator is called through a pointer and is slow to hand over.

    Parameters
    ----------
    key : uint64
        Of :func:`counter_key`; ``mix(key ^ mix(i))`` is the key of the i-th client.
    counter : int
        From 0.
    """
    bits = mix(key + _STEP * uint64(counter + 1))
    return float(bits >> _11) * 2.0**-53


def uniforms(key: np.uint64, rows: NDArray[np.int64], dim: int) -> NDArray[np.float64]:
    """Return numbers in (0, 1), shape (n, dim): a row's depend on no other row.

    They are drawn by counter, as :func:`uniform`'s: millions of rows at once, or any
    few of them.

    Parameters
    ----------
    key : uint64
        Of :func:`counter_key`.
    rows : ndarray of int64, shape (n,)
        Numbers of the rows, from 0.
    dim : int
    """
    row_keys = _mixed(key ^ _mixed(rows.astype(np.uint64)))[:, None]
    counters = _STEP * np.arange(1, dim + 1, dtype=np.uint64)
    bits = _mixed(row_keys + counters) >> np.uint64(12)
    return np.asarray((bits + 0.5) * 2.0**-52)  # neither 0 nor 1


def normals(key: np.uint64, rows: NDArray[np.int64], dim: int) -> NDArray[np.float64]:
    """Return standard normal numbers, shape (n, dim): a row's depend on no other row.

    They are :func:`uniforms` through the inverse of the normal distribution.
    """
    return np.asarray(ndtri(uniforms(key, rows, dim)))


def system_uniforms(n: int) -> NDArray[np.float64]:
    """Return n numbers in (0, 1) that nobody can draw again, nor tell from others.

    They come from the operating system's generator, which is made for cryptography; no
    seed is involved.
    """
    bits = np.frombuffer(os.urandom(8 * n), np.uint64) >> np.uint64(12)
    return np.asarray((bits + 0.5) * 2.0**-52)


def system_normals(n: int) -> NDArray[np.float64]:
    """Return n standard normal numbers; else as :func:`system_uniforms`."""
    return np.asarray(ndtri(system_uniforms(n)))
