"""What runs took in a described world, and how their clients fared in it."""

from __future__ import annotations

from math import inf, nan
from statistics import mean
from typing import Any

from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.experiments.outcome import train_and_test

Row = dict[str, Any]


def target_of(first: list[Outcome], share: float) -> float:
    """Return a share of the first method's best validation score, the mean of seeds."""
    best = float(mean(run["result"]["best_valid_score"] for run in first))
    bigger = first[0]["result"]["valid_score_bigger"]
    return share * best if bigger else best / share


def hours_to(run: Outcome, target: float) -> float:
    """Return when a run's validation score first was as good as that; inf: never.

    Rounds that were not evaluated are not looked at.
    """
    key = f"valid_{run['config']['valid_metric'].lower()}"
    sign = 1 if run["result"]["valid_score_bigger"] else -1
    reached = (row["hours"] for row in run["curve"] if sign * (row[key] - target) >= 0)
    return next(reached, inf)


def world_columns(runs: list[Outcome], first: list[Outcome], share: float) -> Row:
    """Return the columns of a comparison that runs in a world have; {} of others.

    Parameters
    ----------
    runs, first : list of dict
        Of a method and of the first one, by seed.
    share : float
        Of the first one's best validation score: the target.
    """
    totals = [run["result"].get("world") for run in (*runs, *first)]
    if not all(totals):
        return {}
    target = target_of(first, share)
    reached = mean(hours_to(run, target) for run in runs)
    return {
        "hours": _mean(runs, "world_seconds") / 3600,
        f"hours to {100 * share:.10g} %": None if reached == inf else reached,
        "late": _mean(runs, "late"),
        "dropped": _mean(runs, "dropped"),
        "client joules": _mean(runs, "world_joules"),
        "client peak MB": _mean(runs, "client_peak_bytes") / 1e6,
    }


def _mean(runs: list[Outcome], key: str) -> float:
    return float(mean(run["result"]["world"][key] for run in runs))


def group_rows(label: str, runs: list[Outcome]) -> list[Row]:
    """Return a row for each group of a method's clients, means over seeds.

    Groups go by increasing activity, compression rate or speed of the downlink, as
    ``groups`` of ``result.json`` has them. None of runs that do not tell.
    """
    results = [run["result"].get("groups", {}) for run in runs]
    rows = []
    for name in results[0]:
        groups = [result[name] for result in results]
        metric = next(iter(groups[0]))
        for place, upto in enumerate(groups[0]["upto"]):
            row = {"method": label, "by": name, "up to": upto}
            shares = [group[metric][place] for group in groups]
            rows.append(row | {metric: mean(shares)})
    return rows


def gap_columns(runs: list[Outcome]) -> Row:
    """Return the worst tenth by activity, and how far it is below the best tenth."""
    groups = [run["result"].get("groups", {}).get("activity") for run in runs]
    if not all(groups):
        return {"worst tenth": nan, "best - worst": nan}
    return {
        "worst tenth": mean(group["worst"] for group in groups),
        "best - worst": mean(group["gap"] for group in groups),
    }


def train_and_test_clients(cell: Keys) -> Outcome:
    """Run once; put what the run took and how clients fared to its test result.

    Returns
    -------
    dict
        As ``train_and_test``, whose ``test_result`` also holds ``hours``, ``late`` and
        ``dropped`` of the whole run, and of clients by ``activity`` and by the speed of
        their ``link`` ``worst ...``, hits of the worst group, and ``gap ...``, how far
        the best is above it.
    """
    outcome = train_and_test(cell)
    result = outcome["result"]
    world, groups = result["world"], result["groups"]
    more = {"hours": world["world_seconds"] / 3600}
    more |= {key: world[key] for key in ("late", "dropped")}
    for short, name in (("activity", "activity"), ("link", "downlink_mb_per_s")):
        more |= {f"{what} {short}": groups[name][what] for what in ("worst", "gap")}
    result["test_result"] |= more
    return outcome
