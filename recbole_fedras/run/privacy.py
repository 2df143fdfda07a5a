"""How private a run was: epsilon and delta of its noise, by a library's accountant."""

from __future__ import annotations

import logging
from typing import Any

from recbole_fedras.config import Config
from recbole_fedras.config.private import privacy_of
from recbole_fedras.federation.rounds import Rounds


def noise_is_new(config: Config) -> bool:
    """Whether a round that is done again has other noise, and so tells more."""
    return privacy_of(config) is not None and config["dp_noise_source"] == "os"


def privacy(config: Config, rounds: Rounds) -> dict[str, Any]:
    """Return what ``result.json`` says of differential privacy; {} without any.

    Central: each of the rounds, warm-up included, was a Gaussian mechanism on a Poisson
    sample. Local: each invitation of a client was one, of half the multiplier, as any
    two updates differ by twice the norm; it is told for whoever was invited most often.
    Rounds that failed, or were done again, count each time.
    ``epsilon`` is None where there is no noise, and so no guarantee.
    """
    mode = privacy_of(config)
    if mode is None:
        return {}
    multiplier = float(config["dp_noise_multiplier"])
    delta = config["dp_delta"]
    if delta is None:
        delta = len(rounds.server.eligible) ** -1.1
    about: dict[str, Any] = {
        "mode": mode,
        "epsilon": None,
        "delta": delta,
        "noise_multiplier": multiplier,
        "clip_norm": float(config["clip_norm"]),
        "noise_source": config["dp_noise_source"],
    }
    if mode == "central":
        rate = config.federation().client_fraction
        about |= {"sampling_probability": rate, "releases": rounds.server.begun}
    else:
        rate, multiplier = 1.0, multiplier / 2
        about["releases"] = int(rounds.server.invitations.max())
    if multiplier:
        about["epsilon"] = epsilon(multiplier, rate, about["releases"], delta)
    return about


def epsilon(
    noise_multiplier: float, sampling_probability: float, releases: int, delta: float
) -> float:
    """Return epsilon of a Gaussian mechanism on Poisson samples, used several times.

    It is by Renyi differential privacy: ``RdpAccountant`` of dp-accounting, which
    follows Mironov, Talwar and Zhang, "Renyi Differential Privacy of the Sampled
    Gaussian Mechanism" (arXiv:1908.10530).

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise over what one user can change the sum by.
    sampling_probability : float
        1: everybody takes part.
    releases : int
    delta : float
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    event = PoissonSampledDpEvent(
        sampling_probability, GaussianDpEvent(noise_multiplier)
    )
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns of orders that it does without
    try:
        accountant = RdpAccountant().compose(event, releases)
    finally:
        log.setLevel(level)
    return float(accountant.get_epsilon(delta))
