"""One row of a comparison: quality, its significance and cost, over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

import pandas as pd

from recbole_fedras.experiments.centralised import centralised
from recbole_fedras.experiments.identity import Outcome
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.provenance import other_code
from recbole_fedras.experiments.statistics import adjusted, difference, interval
from recbole_fedras.experiments.tables import HIGH, LOW, SPREAD


def summaries(runs: Mapping[str, list[Outcome]]) -> list[dict[str, Any]]:
    """Return a row for each method, tested against the first."""
    first = next(iter(runs.values()))
    rows = [summary(label, group, first) for label, group in runs.items()]
    # What is tested against itself is no test.
    p_values = adjusted([row["p"] for row in rows[1:]])
    for row, p_value in zip(rows[1:], p_values, strict=True):
        row["p adjusted"] = p_value
    return rows


def summary(label: str, runs: list[Outcome], first: list[Outcome]) -> dict[str, Any]:
    """Return one row: quality, its significance against ``first``, and cost."""
    row: dict[str, Any] = {"method": label}
    tested = [measured(run) for run in runs]
    for metric in tested[0]:
        values = [found[metric] for found in tested]
        row[metric] = mean(values)
        row[metric + SPREAD] = stdev(values) if len(values) > 1 else None
        row[metric + LOW], row[metric + HIGH] = interval(metric, runs) or (None, None)
    metric = next(iter(first[0]["result"]["test_result"]))
    row |= ahead(metric, runs, first, f"{metric} - first")
    found = difference(runs, first)
    row |= {"better users": found.better, "worse users": found.worse}
    row |= {"effect": found.effect, "p": found.p, "p adjusted": ""}  # of all rows
    row |= cost([run["result"]["communication"] for run in runs])
    for direction in ("uplink", "downlink"):  # of what FedAvg sends one way
        dense = (
            mean(run["result"]["communication"]["dense_bytes"] for run in runs) / 2e6
        )
        row[f"CR {direction}"] = 1 - row[f"{direction} MB"] / dense
    row["seconds"] = mean(run["result"]["seconds"]["total"] for run in runs)
    trained = runs[0]["measure"] == train_and_test.__name__
    row["learning rate"] = runs[0]["config"]["learning_rate"] if trained else ""
    named = {measure.__name__: measure for measure in (train_and_test, centralised)}
    row["other code"] = other_code(runs, named[runs[0]["measure"]])
    return row


def measured(run: Outcome) -> dict[str, float]:
    """Return what the test has found, and how far an attack's targets got."""
    result = run["result"]
    found: dict[str, float] = result["test_result"] | result.get("exposure", {})
    return found


def ahead(
    metric: str, runs: list[Outcome], first: list[Outcome], key: str
) -> dict[str, Any]:
    """Return how far runs are ahead of the first method's, by a metric, and the ends.

    Empty, so that none is shown, for the first method itself and where either lacks it.
    """
    own, other = (
        [run["result"]["test_result"].get(metric) for run in group if run["result"]]
        for group in (runs, first)
    )
    if runs is first or not own or not other or None in own + other:
        return {key: "", key + LOW: None, key + HIGH: None}
    low, high = interval(metric, runs, first) or (None, None)
    return {key: mean(own) - mean(other), key + LOW: low, key + HIGH: high}


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
