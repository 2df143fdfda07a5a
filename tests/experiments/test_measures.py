"""Measures of exhibits other than training and testing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import COMMON, CTX, budget, make_update

from recbole_fedras.compressor.svd import SVD
from recbole_fedras.config import Config
from recbole_fedras.experiments.loss_meter import LossMeter
from recbole_fedras.experiments.measures import (
    GROUP_SIZES,
    FullSVD,
    group_sizes,
    information_loss,
    transfer_time,
)
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.run.setup import make_simulation, prepare_data


def losses(**keys):
    return information_loss(whole(**keys))["result"]


@pytest.mark.slow
def test_information_loss_is_that_of_aggregates_and_tables(workspace):
    """Of no compression none; of clusters what the definition says."""
    exact = losses(compressor="none")["test_result"]
    assert exact["server sum"] == 0
    assert exact["client"] < 1e-12
    clusters = losses(compressor="FedRAS", compression_rate=0.75)
    lost = clusters["test_result"]
    assert lost["client"] > 0
    assert lost["total"] == pytest.approx(lost["client"] + lost["server"])
    assert lost["client sum"] == pytest.approx(lost["client"] * 60 * 8)
    assert clusters["communication"]["uplink_bytes"] > 0
    assert losses(model="LightFR")["test_result"]["total"] == 0
    # CoLR's clients train in a subspace: what they did not learn is lost too.
    assert losses(compressor="CoLR", compression_rate=0.75)["test_result"]["client"] > 0


def test_the_loss_meter_changes_no_training(workspace):
    for name in ("FedRAS", "CoLR"):
        keys = {"compressor": name, "compression_rate": 0.75, "n_jobs": 1}
        config = Config(config_dict=keys, argv=COMMON)
        tables = []
        for kind in (Simulation, LossMeter):
            train, _, _ = prepare_data(config)
            simulation = make_simulation(config, train, kind)
            for _ in range(3):
                before = simulation.server.parameters.item_table.clone()
                simulation.run_round()
            tables.append(simulation.server.parameters.item_table)
        assert torch.equal(*tables)
        lacking = tables[1] - simulation.shard.replicas.tables[0]
        assert simulation.losses[-1]["server"] == pytest.approx(
            float(lacking.square().sum()), rel=1e-4
        )
        assert not torch.equal(before, tables[1])


def whole(**keys):
    common = Config(argv=COMMON).external_config_dict
    return common | {"n_jobs": 1, "epochs": 4} | keys


def downlinks(**keys):
    """Yield each round's aggregate, and what clients receive of it."""
    config = Config(config_dict=whole(**keys))
    train, _, _ = prepare_data(config)
    simulation = make_simulation(config, train, Simulation)
    server = simulation.server
    for _ in range(4):
        before = server.parameters.item_table.clone()
        simulation.run_round()
        change = server.parameters.item_table - before
        payload = server.policy.messages[0].payload
        received = config.make_compressors()[1].decode(payload, CTX)
        yield change[received.ids], received.rows, payload


def measured(measure, **keys):
    return measure(whole(**keys))["result"]["test_result"]


def test_groups_are_counted_by_their_rows_and_cosines_averaged(workspace):
    keys = {"compressor": "FedRAS", "compression_rate": 0.75, "clustering": "fixed"}
    found = measured(group_sizes, **keys)
    cosines, worst, sizes = [], [], []
    for change, rows, _ in downlinks(**keys):
        dots = (change * rows).sum(1) / change.norm(dim=1) / rows.norm(dim=1)
        cosines.append(float(dots.mean()))
        actions = list(map(tuple, rows.tolist()))
        counts = Counter(actions)
        of_group = dict.fromkeys(counts, 0.0)
        for action, dot in zip(actions, dots.tolist(), strict=True):
            of_group[action] += dot / counts[action]
        worst.append(min(of_group.values()))
        assert len(counts) == 15  # 60 items, 75 %
        sizes += counts.values()
    assert found["mean cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert found["worst group"] == pytest.approx(np.mean(worst), abs=1e-4)
    bounds = [0, *GROUP_SIZES.values()]
    for name, below, most in zip(GROUP_SIZES, bounds[:-1], bounds[1:], strict=True):
        share = sum(below < size <= most for size in sizes) / len(sizes)
        assert found[name] == pytest.approx(share)


def test_transfer_time_is_that_of_the_bytes_after_the_first_round(workspace):
    keys = {"compressor": "none", "client_fraction": 0.05, "downlink_mb_per_s": 0.5}
    found = measured(transfer_time, **keys)
    sizes = [len(payload.to_bytes()) for _, _, payload in downlinks(**keys)]
    assert len({np.mean(sizes), np.mean(sizes[1:])}) == 2  # the first is another
    assert found["transfer s"] == pytest.approx(np.mean(sizes[1:]) / 0.5e6, rel=1e-12)
    assert found["compute s"] > 0


@pytest.mark.parametrize("feedback", [True, False])
def test_downlinks_with_feedback_are_noted_too(workspace, feedback):
    keys = {"compressor": "FedRAS", "compression_rate": 0.75, "clustering": "fixed"}
    found = measured(group_sizes, downlink_feedback=feedback, **keys)
    assert 0 < found["mean cosine"] <= 1


@pytest.mark.parametrize(
    ("measure", "keys", "said"),
    [
        (group_sizes, {"replica": "personal"}, "replica='personal' is not allowed"),
        (group_sizes, {"bandwidth": [0.5, 0.7]}, r"bandwidth=\[0.5, 0.7\] is not al"),
        (information_loss, {"server_optimizer": "adam"}, "sgd of rate 1 to compare"),
        (
            transfer_time,
            {"epochs": 1},
            "epochs=1 is not allowed; it must be at least 2",
        ),
    ],
)
def test_what_cannot_be_noted_is_refused(workspace, measure, keys, said):
    with pytest.raises(ValueError, match=said):
        measured(measure, compressor="none", **keys)


def test_a_full_svd_sends_what_ours_does():
    update = make_update(40)
    first, second = (
        kind().decode(kind().encode(update, budget(0.75), CTX), CTX)
        for kind in (SVD, FullSVD)
    )
    torch.testing.assert_close(first.rows, second.rows, rtol=1e-4, atol=1e-5)
