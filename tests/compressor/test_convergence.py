"""What is lost of a message is measured; with feedback, whatever is lost arrives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CTX, DIM, N_ITEMS, budget, long, make_update, rounds_of, slow
from methods import NAMES, make

from recbole_fedras.compressor import RowUpdate
from recbole_fedras.compressor.measured import contraction


def test_contraction_of_topk_is_the_energy_of_what_it_drops():
    update = make_update(40)
    topk = make("TopK")
    decoded = topk.decode(topk.encode(update, budget(0.75), CTX), CTX)
    squares = update.rows.double().square().sort(dim=1).values
    expected = float(squares[:, :-2].sum() / squares.sum())
    assert contraction(update, decoded) == pytest.approx(expected)
    assert contraction(update, update) == 0
    assert contraction(update, make_update(0)) == 1


@pytest.mark.parametrize(
    "keys",
    [{}, slow({"replica": "personal"}), slow({"downlink_feedback": True})],
)
def test_runs_report_what_both_directions_lose(keys, run):
    keys = {"compressor": "TopK", **keys}
    plain, told = run(**keys), run(**keys, report_contraction=True)
    assert plain["test_result"] == told["test_result"]
    for before, after in zip(rounds_of(plain), rounds_of(told), strict=True):
        assert 0.1 < float(after["uplink_contraction"]) < 0.9
        assert 0 <= float(after["downlink_contraction"]) < 0.9
        assert not {"uplink_contraction", "downlink_contraction"} & {*before}
        assert before["loss"] == after["loss"]


class LeastSquares:
    """``tr (W - W*)' H (W - W*) / 2`` over tables W, curvature from 1/4 to 1."""

    def __init__(self):
        rng = np.random.default_rng(0)
        vectors, _ = np.linalg.qr(rng.standard_normal((N_ITEMS, N_ITEMS)))
        values = np.linspace(0.25, 1, N_ITEMS)
        self.hessian = torch.from_numpy(vectors * values @ vectors.T)
        self.optimum = torch.from_numpy(rng.standard_normal((N_ITEMS, DIM)))

    def gradient(self, table):
        return self.hessian @ (table - self.optimum)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("TopK", "CountSketch") else long(name)
        for name in NAMES
        if name not in ("CE", "RankOne")  # of tables, of one rank
    ],
)
def test_descent_with_feedback_converges_within_its_bound(name):
    """docs/convergence.md: |e| stays below its bound, and W comes to the optimum."""
    problem, compressor = LeastSquares(), make(name)
    table = torch.zeros(N_ITEMS, DIM, dtype=torch.float64)
    owed = torch.zeros_like(table)
    first = float((table - problem.optimum).norm())
    rate, ids = 0.05, torch.arange(N_ITEMS)
    worst, steepest = 0.0, 0.0
    for round in range(800):
        gradient = problem.gradient(table)
        steepest = max(steepest, float(gradient.norm()))
        due = RowUpdate(ids, (owed - rate * gradient).float())
        ctx = replace(CTX, round=round)
        decoded = compressor.decode(compressor.encode(due, budget(0.75), ctx), ctx)
        worst = max(worst, contraction(due, decoded))
        owed = due.rows.double()
        owed[decoded.ids] -= decoded.rows
        table[decoded.ids] += decoded.rows
        if name != "none":
            root = worst**0.5
            assert root < 1
            bound = rate * steepest * root / (1 - root)
            assert float(owed.norm()) <= 1.001 * bound + 1e-6
    assert float((table - problem.optimum).norm()) < 1e-3 * first
