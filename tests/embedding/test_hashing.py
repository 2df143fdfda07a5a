"""Hashing: which rows make an item, and the weights that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from population import BASE, DIM, N_ITEMS

from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.embedding.hashing import PRIME, Hash


def test_hashes_are_a_universal_family_of_the_run():
    rows, twice = (Hash(5000, 4, None, 1, hash_rows=50).members for _ in range(2))
    assert (rows == twice).all()
    assert (Hash(5000, 4, None, 2, hash_rows=50).members != rows).any()
    assert PRIME == 2**61 - 1
    for column in rows.numpy().T:
        counts = np.bincount(column, minlength=50)
        assert counts.min() > 50  # of 100 on average
    both = len({tuple(pair) for pair in rows.tolist()})
    assert both > 1900  # of 2,500 pairs: one function says little about the other


@pytest.mark.parametrize("base", [None, BASE])
def test_weights_of_hashes_start_as_the_mean(base):
    start = []
    for weighted in (False, True):
        embedding = Hash(N_ITEMS, DIM, base, 1, 11, 3, hash_weights=weighted)
        table = embedding.initial_table(np.random.default_rng(0), 0.1)
        items = torch.arange(N_ITEMS)[None]
        start.append(embedding.vectors(table[embedding.members[items]], items, {}))
    plain, weighted = start
    torch.testing.assert_close(weighted, plain if base is None else base[None])
    assert len(plain[0].unique(dim=0)) > 30


def test_learned_weights_change_what_a_run_ends_with(run):
    keys = {"item_embedding": "hash", "hash_rows": 24, "compressor": "none"}
    plain, weighted = (
        run("MF", epochs=3, hash_weights=own, learning_rate=0.5, **keys)
        for own in (False, True)
    )
    up = [own["communication"]["uplink_bytes"] for own in (plain, weighted)]
    assert up[1] > up[0]
    state = read_checkpoint(Path(weighted["run_folder"]) / "last.pth")["state_dict"]
    table = state["item_embedding.weight"]
    assert table.shape == (1 + 24 + 15, 8)  # the weights of four items in a row
    assert (table[25:] != 0).any(dim=1).float().mean() > 0.5
