"""A learning rate for each method, chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import inf

from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.experiments.sweep import Sweep


def best_rate(rates: Sequence[float], tried: Sequence[Outcome]) -> float:
    """Return the rate with the best validation score; the first if all failed."""
    scores = [-inf] * len(rates)
    for place, outcome in enumerate(tried):
        if result := outcome["result"]:
            sign = 1 if result["valid_score_bigger"] else -1
            scores[place] = sign * result["best_valid_score"]
    return rates[scores.index(max(scores))]


def tuned(
    methods: dict[str, Keys], rates: Sequence[float], seed: int, sweep: Sweep
) -> dict[str, Keys]:
    """Give each method the best of some learning rates, but those that name their own.

    Parameters
    ----------
    methods : dict of str to dict
        Keys by label.
    rates : sequence of float
        None: nothing is chosen.
    seed : int
        Of the runs that they are chosen by.
    sweep : Sweep
    """
    due = [label for label, keys in methods.items() if "learning_rate" not in keys]
    grid = [
        methods[label] | {"learning_rate": rate, "seed": seed}
        for label in due
        for rate in rates
    ]
    if not grid:
        return methods
    tried = iter(sweep.run(grid, "Learning rates", tolerant=True))
    chosen = {
        label: methods[label]
        | {"learning_rate": best_rate(rates, list(islice(tried, len(rates))))}
        for label in due
    }
    return methods | chosen
