"""One row of a comparison: quality, its significance and cost, over seeds."""

from __future__ import annotations

from math import nan
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from recbole_fedras.experiments.identity import Outcome
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.provenance import other_code
from recbole_fedras.experiments.tables import SPREAD


def summary(label: str, runs: list[Outcome], first: list[Outcome]) -> dict[str, Any]:
    """Return one row: quality, its significance against ``first``, and cost."""
    row: dict[str, Any] = {"method": label}
    for metric in runs[0]["result"]["test_result"]:
        values = [run["result"]["test_result"][metric] for run in runs]
        row[metric] = mean(values)
        row[metric + SPREAD] = stdev(values) if len(values) > 1 else None
    row["better users"], row["worse users"], row["p"] = significance(runs, first)
    row |= cost([run["result"]["communication"] for run in runs])
    row["seconds"] = mean(run["result"]["seconds"]["total"] for run in runs)
    row["other code"] = other_code(runs, train_and_test)
    return row


def cost(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return what runs have sent on average; NaN of no runs.

    Parameters
    ----------
    runs : list of dict
        ``communication`` of each result. The rate with everything charged is taken from
        the bytes, as earlier versions have another name for it.
    """
    names = ["uplink_bytes", "downlink_bytes", "catch_up_bytes"]
    rest = ["dense_bytes", "wire_compression_rate"]
    sent = pd.DataFrame(runs, columns=names + rest, dtype=float)
    charged = 1 - sent[names].sum(axis=1) / sent["dense_bytes"]
    means = sent.mean()
    return {
        "uplink MB": means["uplink_bytes"] / 1e6,
        "downlink MB": means["downlink_bytes"] / 1e6,
        "catch-up MB": means["catch_up_bytes"] / 1e6,
        "CR charged": charged.mean(),
        "CR wire": means["wire_compression_rate"],
    }


def significance(cells: list[Outcome], first: list[Outcome]) -> tuple[int, int, float]:
    """Test by Wilcoxon's signed ranks whether users fare otherwise than with ``first``.

    What is paired is a user's reciprocal rank in the test, the mean over seeds.

    Returns
    -------
    better, worse : int
        Users whose item stands higher, or lower, than with ``first``.
    p : float
        Two-sided; 1 where no user differs. NaN where no metric counts hits, and where
        a split that depends on the seed tests other users with each.
    """
    sizes = {len(cell["ranks"]) for cell in [*cells, *first]}
    if sizes == {0} or len(sizes) > 1:
        return 0, 0, nan
    change = _reciprocal_ranks(cells) - _reciprocal_ranks(first)
    better, worse = int((change > 1e-12).sum()), int((change < -1e-12).sum())
    p = float(wilcoxon(change).pvalue) if better + worse else 1.0
    return better, worse, p


def _reciprocal_ranks(cells: list[Outcome]) -> np.ndarray[Any, np.dtype[np.float64]]:
    ranks = np.array([cell["ranks"] for cell in cells], float)  # (n_seeds, n_users)
    reciprocal = np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0)
    return np.asarray(reciprocal.mean(axis=0))
