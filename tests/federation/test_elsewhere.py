"""Training and scores on another device than the CPU, of which there is none here.

Every branch that a device takes is run on an emulated one; on a real one, if there is a
GPU, tests/run/test_gpu.py runs whole runs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from elsewhere import DEVICE, Elsewhere
from population import N_CLIENTS, N_ITEMS, TRAINING, mf, ncf, simulate, tables

from recbole_fedras.compressor.colr import CoLR
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.embedding.hashing import Hash
from recbole_fedras.federation.attacks.untargeted import SignFlip

SAM = replace(TRAINING, rho_shared=0.1, rho_private=0.1, weight_decay=0.1)
ADAM = replace(TRAINING, user_optimizer="adam", pairwise=True)
CASES = {
    "adam": (ncf, SVD, ADAM, {"replica": "personal", "uplink_feedback": True}),
    "sam": (ncf, CoLR, SAM, {"replica": "stale"}),
    "attack": (mf, SVD, TRAINING, {"attack": SignFlip(), "attack_share": 0.5}),
}


def hashed():
    """MF whose items are made of rows that they share."""
    model = mf()
    model.begin(
        Hash(N_ITEMS, model.dim, torch.zeros(N_ITEMS, model.dim), seed=1, hash_rows=15)
    )
    return model


@pytest.mark.parametrize("case", [*CASES, "hash"])
def test_another_device_gives_the_run_of_the_cpu_to_rounding(case, data):
    make, compressor, training, keys = CASES.get(case, (hashed, SVD, TRAINING, {}))
    here, there = make(), make()
    one = simulate(here, data, compressor(), training, 1.0, **keys)
    there.device = DEVICE
    with Elsewhere() as device:
        other = simulate(there, data, compressor(), training, 1.0, **keys)
        for _ in range(2):
            reports = one.run_round(), other.run_round()
            assert reports[1].n_clients == reports[0].n_clients == N_CLIENTS
        assert device.moved
        users = {"user_id": torch.arange(1, 4), "item_id": torch.tensor([1, 7, 9])}
        scores = there.full_sort_predict(users), there.predict(users)
        assert scores[0].device == scores[1].device == DEVICE
        scores = [values.cpu() for values in scores]
    near = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(tables(other), tables(one), **near)
    torch.testing.assert_close(other.shard.user_rows, one.shard.user_rows, **near)
    expected = here.full_sort_predict(users), here.predict(users)
    torch.testing.assert_close(tuple(scores), expected, **near)
    assert np.isfinite(reports[1].loss)
