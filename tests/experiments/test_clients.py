"""Hours to a target, and how clients fared: of runs made by hand."""

from __future__ import annotations

from math import inf, isnan

import pytest

from recbole_fedras.experiments.clients import (
    gap_columns,
    group_rows,
    hours_to,
    target_of,
    world_columns,
)

WORLD = {"late": 4, "dropped": 2, "world_joules": 10.0, "client_peak_bytes": 2e6}


def run(*scores: float, bigger: bool = True, **more) -> dict:
    """Make a run that was evaluated every other hour."""
    curve = [
        {"round": place, "hours": 2.0 * place, "valid_ndcg@10": score}
        for place, score in enumerate(scores, 1)
    ]
    best = max(scores) if bigger else min(scores)
    result = {"best_valid_score": best, "valid_score_bigger": bigger} | more
    return {"config": {"valid_metric": "NDCG@10"}, "curve": curve, "result": result}


def test_the_target_is_a_share_of_the_first_methods_best():
    first = [run(0.1, 0.4, 0.3), run(0.6)]
    assert target_of(first, 0.9) == pytest.approx(0.45)
    slow = run(0.1, 0.45, 0.44, 0.5)
    assert [hours_to(slow, target) for target in (0.45, 0.46, 0.6)] == [4, 8, inf]
    errors = run(3.0, 2.0, 1.0, bigger=False)
    assert target_of([errors], 0.5) == 2.0
    assert hours_to(errors, 2.0) == 4


def test_columns_are_means_over_seeds_and_empty_where_a_seed_never_arrives():
    took = [WORLD | {"world_seconds": 3600 * hours} for hours in (6, 8)]
    runs = [run(0.1, 0.5, world=took[0]), run(0.1, 0.2, 0.5, world=took[1])]
    row = world_columns(runs, runs, 0.9)
    assert (row["hours"], row["hours to 90 %"]) == (7, 5)
    assert (row["late"], row["client peak MB"]) == (4, 2)
    worse = [run(0.5, world=took[0]), run(0.1, world=took[1])]
    assert world_columns(worse, runs, 0.9)["hours to 90 %"] is None
    assert world_columns([run(0.5)], runs, 0.9) == {}


def test_groups_are_means_over_seeds():
    groups = [
        {"activity": {"hit@10": shares, "upto": [3, 9], "worst": min(shares), "gap": 1}}
        for shares in ([0.0, 1.0], [0.5, 1.0])
    ]
    runs = [run(0.5, groups=of_seed) for of_seed in groups]
    assert [row["hit@10"] for row in group_rows("SVD", runs)] == [0.25, 1.0]
    assert [row["up to"] for row in group_rows("SVD", runs)] == [3, 9]
    assert gap_columns(runs) == {"worst tenth": 0.25, "best - worst": 1}
    assert group_rows("old", [run(0.5)]) == []
    assert isnan(gap_columns([run(0.5)])["worst tenth"])
