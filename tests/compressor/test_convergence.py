"""What is lost of a message is measured; with feedback, whatever is lost arrives."""

import pytest
from conftest import CTX, budget, long, make_update, rounds_of, slow
from descent import descend
from methods import NAMES, make

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
    found = descend(make(name))
    assert name == "none" or max(found.lost) < 1
    assert found.share_of_bound <= 1.001
    assert found.distance < 1e-3
