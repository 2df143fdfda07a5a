"""Separate, seeded random streams: no draw of one purpose ever shifts another."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a random number is drawn for; the values are part of a run's identity."""

    INITIALISATION = 0
    COHORT = 1
    SAMPLES = 2
    COMPRESSOR = 3
    CANDIDATES = 4
    BANDWIDTH = 5
    TIES = 6


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
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(int(stream), *key)))
    )
