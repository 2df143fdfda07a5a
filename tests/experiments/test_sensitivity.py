"""Regret of another's learning rate and weight decay, worked out by hand."""

from __future__ import annotations

from math import nan

import pytest

from recbole_fedras.experiments.exhibits import read_exhibit
from recbole_fedras.experiments.sensitivity import Cell, draw_heat, regrets

PAIRS = [(0.1, 0.0), (0.1, 0.5), (0.2, 0.0)]
TESTS = {
    "none": [(0.50, 0.48), (0.60, 0.59), (0.20, 0.2)],
    "A": [(0.50, 0.49), (0.30, 0.31), (0.495, 0.45)],
    "B": [(0.46, 0.46), (nan, nan), (0.30, 0.3)],
    "C": [(0.20, 0.2), (0.40, 0.39), (0.10, 0.1)],
}
CELLS = [
    Cell("d", method, pair, *scores)
    for method, of_pairs in TESTS.items()
    for pair, scores in zip(PAIRS, of_pairs, strict=True)
]


def test_regret_is_of_the_test_at_pairs_that_validation_chooses():
    rows = {row["method"]: row for row in regrets(CELLS)}
    assert rows["none"]["regret"] == rows["C"]["regret"] == 0
    assert rows["A"]["regret"] == pytest.approx(0.49 - 0.31)
    assert (rows["A"]["learning rate"], rows["A"]["weight decay"]) == PAIRS[0]
    assert rows["A"]["worst within 2 %"] == 0.45
    # 0.45 to 0.49 of A and 0.46 of B overlap: their order is a matter of choice.
    assert [row["level with"] for row in rows.values()] == ["", "B", "A", ""]
    assert rows["B"]["with first's pair"] != rows["B"]["with first's pair"]  # NaN


def test_every_method_has_a_map():
    panels = draw_heat(CELLS, "ndcg@10").axes
    assert [panel.get_title() for panel in panels] == [f"d: {name}" for name in TESTS]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["0.1", "0.2"]
    shown = [text.get_text() for text in panels[1].texts]
    assert shown == ["0.490", "0.450", "0.310", "nan"]


def test_the_exhibit_names_every_pair_for_every_method():
    exhibit = read_exhibit("sensitivity")
    pairs = {
        (entry.method, entry.keys["learning_rate"], entry.keys["weight_decay"])
        for entry in exhibit.entries
    }
    assert len(pairs) == len(exhibit.entries) == 7 * 4 * 4
