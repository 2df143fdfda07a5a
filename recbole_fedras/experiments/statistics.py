"""What a review asks of numbers: intervals, corrected tests, effects, rank plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import nan, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import (
    false_discovery_control,
    friedmanchisquare,
    rankdata,
    studentized_range,
    wilcoxon,
)

from recbole_fedras.experiments.identity import Outcome

Floats = NDArray[np.float64]

#: Draws of a bootstrap: the ends of its interval are sure to about a hundredth of it.
_DRAWS = 1000


class Difference(NamedTuple):
    """How users fare otherwise than with another method.

    Attributes
    ----------
    better, worse : int
        Users whose item stands higher, or lower.
    effect : float
        Matched-pairs rank-biserial correlation, from -1, all worse, to 1: the signed
        ranks of those better less those of those worse, of all.
    p : float
        Two-sided, of Wilcoxon's signed ranks; 1 where no user differs.
    """

    better: int
    worse: int
    effect: float
    p: float


#: What cannot be tested.
UNKNOWN = Difference(0, 0, nan, nan)


def difference(cells: Sequence[Outcome], first: Sequence[Outcome]) -> Difference:
    """Test by Wilcoxon's signed ranks whether users fare otherwise than with ``first``.

    What is paired is a user's reciprocal rank in the test, the mean over seeds. Effect
    and p are NaN where no metric counts hits, where a split that depends on the seed
    tests other users with each, and where runs are missing.
    """
    groups = [_reciprocal_ranks(cells), _reciprocal_ranks(first)]
    if len({group.size for group in groups}) > 1 or not groups[0].size:
        return UNKNOWN
    change = groups[0] - groups[1]
    change[np.abs(change) <= 1e-12] = 0
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    if not better + worse:
        return Difference(0, 0, 0.0, 1.0)
    above = wilcoxon(change, alternative="greater").statistic
    whole = (better + worse) * (better + worse + 1) / 2
    effect = float(2 * above / whole - 1)
    return Difference(better, worse, effect, float(wilcoxon(change).pvalue))


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number; NaN stays so, and does not count.

    By Benjamini and Hochberg's procedure, which scipy has: of those below 0.05 then,
    one in twenty is expected to be false.
    """
    values = np.array(p_values, float)
    known = ~np.isnan(values)
    if known.any():
        values[known] = false_discovery_control(values[known])
    return list(values.tolist())


def interval(
    metric: str, runs: Sequence[Outcome], first: Sequence[Outcome] | None = None
) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean, by bootstrap over users and seeds.

    Users and seeds are drawn with replacement, each by itself: either would be others
    another time.

    Parameters
    ----------
    metric : str
        Of one held-out item: ``hit@k``, ``ndcg@k``, ``mrr@k``.
    runs : sequence of dict
        One for each seed, with ``ranks``.
    first : sequence of dict, optional
        Of another method, with the same users and seeds: the interval is that of how
        far ``runs`` are ahead of it.

    Returns
    -------
    tuple of float, or None
        None for another metric, where ranks were not kept or are of other users, and
        where users have several items held out, so that ranks of the first do not make
        up the metric.

    Examples
    --------
    >>> runs = [{"ranks": [1, 0] * 50}]
    >>> low, high = interval("hit@10", runs)
    >>> 0.38 < low < 0.43 and 0.57 < high < 0.62
    True
    >>> interval("hit@10", runs, runs)
    (0.0, 0.0)
    """
    values = _values(metric, runs)
    if first is not None:
        others = _values(metric, first)
        values = values - others if values.shape == others.shape else values[:0]
    if not values.size:
        return None
    rng, means = np.random.default_rng(0), []
    n_seeds, n_users = values.shape
    for _ in range(_DRAWS):
        of_users = values[rng.integers(n_seeds, size=n_seeds)].mean(axis=0)
        means.append(of_users[rng.integers(n_users, size=n_users)].mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _values(metric: str, runs: Sequence[Outcome]) -> Floats:
    """Return users' shares in a metric, (n_seeds, n_users); none where not known."""
    ranks, found = _ranks(runs), re.fullmatch(r"(hit|ndcg|mrr)@(\d+)", metric)
    if found is None or not ranks.size:
        return np.empty((0, 0))
    counts = (ranks > 0) & (ranks <= int(found[2]))
    values = np.where(counts, _WORTH[found[1]](np.maximum(ranks, 1)), 0.0)
    if not all(map(partial(_agrees, metric), runs, values.mean(axis=1))):
        return np.empty((0, 0))
    return values


def _agrees(metric: str, run: Outcome, value: float) -> bool:
    """Whether a run's metric is what its ranks say, but for rounding."""
    tested = (run.get("result") or {}).get("test_result", {})
    return bool(abs(tested.get(metric, value) - value) < 1e-3)


#: What an item at a rank is worth to a metric that finds it.
_WORTH: dict[str, Callable[[NDArray[np.int64]], Floats]] = {
    "hit": np.ones_like,
    "ndcg": lambda ranks: 1 / np.log2(ranks + 1),
    "mrr": lambda ranks: 1 / ranks,
}


class Order(NamedTuple):
    """How methods rank over cells: 1 is best.

    Attributes
    ----------
    methods : list of str
    ranks : list of float
        Means over cells.
    critical : float
        Two methods whose mean ranks differ by less are not told apart at 5 %, by
        Nemenyi's test.
    n_cells : int
    p : float
        Of Friedman's test whether any ranks otherwise than another; only if it is low
        do the differences count.
    """

    methods: list[str]
    ranks: list[float]
    critical: float
    n_cells: int
    p: float


def order(scores: Mapping[str, Sequence[float]]) -> Order | None:
    """Rank methods over cells: datasets, models and settings.

    Source: Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets"
    (JMLR 2006), of which the abstract and others' accounts of the formula were read.
    Cells of one dataset depend on each other, so that the test is optimistic.

    Parameters
    ----------
    scores : mapping of str to sequence of float
        Of each method, one for each cell; more is better.

    Returns
    -------
    Order or None
        None where there are less than three methods or five cells that all have.
    """
    if len(scores) < 3 or len(set(map(len, scores.values()))) > 1:
        return None
    table = np.array(list(scores.values()), float).T
    table = table[~np.isnan(table).any(axis=1)]
    n_cells, n_methods = table.shape
    if n_cells < 5:
        return None
    ranks = rankdata(-table, axis=1).mean(axis=0)
    studentized = studentized_range.ppf(0.95, n_methods, np.inf) / sqrt(2)
    critical = studentized * sqrt(n_methods * (n_methods + 1) / (6 * n_cells))
    p = float(friedmanchisquare(*table.T).pvalue)
    return Order(list(scores), ranks.tolist(), float(critical), n_cells, p)


def _ranks(runs: Sequence[Outcome]) -> NDArray[np.int64]:
    """Return users' ranks, shape (n_seeds, n_users); none where they do not fit."""
    every = [run.get("ranks") or [] for run in runs]
    if not every or len(set(map(len, every))) > 1:
        return np.empty((0, 0), np.int64)
    return np.array(every, np.int64)


def _reciprocal_ranks(runs: Sequence[Outcome]) -> Floats:
    ranks = _ranks(runs)
    if not ranks.size:
        return np.empty(0)
    reciprocal = np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0)
    return np.asarray(reciprocal.mean(axis=0))
