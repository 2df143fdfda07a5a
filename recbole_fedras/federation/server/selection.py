"""Who takes part in a round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.errors import ConfigError
from recbole_fedras.numeric.rng import Stream, generator, system_uniforms

Ints = NDArray[np.int64]


def cohort_size(n_eligible: int, client_fraction: float) -> int:
    """Clients per round, ``floor(fraction * n)``.

    Raises
    ------
    ConfigError
        If that is nobody.
    """
    size = int(n_eligible * client_fraction + 1e-9)
    if size < 1:
        raise ConfigError(
            f"client_fraction={client_fraction} of {n_eligible} clients selects nobody;"
            f" it must be at least {1 / max(n_eligible, 1):.2g} and at most 1 (RSC cuts"
            " it by compression_rate)"
        )
    return size


def select_cohort(eligible: Ints, size: int, seed: int, round: int) -> Ints:
    """Draw a round's cohort uniformly without replacement; increasing."""
    rng = generator(seed, Stream.COHORT, round)
    return np.sort(rng.choice(eligible, size, replace=False))


def sample_cohort(eligible: Ints, fraction: float, seed: int, round: int) -> Ints:
    """Let each client take part with a probability of its own; increasing, or nobody.

    That is Poisson sampling. No client's part depends on another's, which is what
    privacy by sampling rests on.
    """
    drawn = generator(seed, Stream.COHORT, round).random(len(eligible))
    return eligible[drawn < fraction]


def secret_cohort(eligible: Ints, fraction: float) -> Ints:
    """Do as :func:`sample_cohort`, so that nobody can tell a client's part.

    It is drawn by the operating system: of a simulated generator, who knows many
    clients' parts could find the others'.
    """
    return eligible[system_uniforms(len(eligible)) < fraction]
