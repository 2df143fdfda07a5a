"""Data are dealt whole, by the seed alone; what is tested is nobody's."""

from __future__ import annotations

import pytest
import torch

from recbole_fedras.beyond.datasets import load
from recbole_fedras.beyond.networks import make_network


def test_images_are_dealt_once_and_unevenly():
    one, two = load("digits", 1), load("digits", 2)
    assert torch.equal(one.test.inputs, two.test.inputs)
    assert len(one.clients[0].classes) != len(two.clients[0].classes)
    every = torch.cat([part.inputs for part in (*one.clients, one.valid, one.test)])
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).float() / 16
    assert len(every) == len(images) == 1797
    assert sorted(every.sum((1, 2, 3)).tolist()) == sorted(images.sum((1, 2)).tolist())
    shares = torch.stack(
        [torch.bincount(part.classes, minlength=10) for part in one.clients]
    )
    assert (shares.max(dim=1).values > 0.3 * shares.sum(dim=1)).sum() > 10


def test_a_wrist_is_a_client_and_windows_are_in_one_part_only():
    pytest.importorskip("seglearn")
    data = load("watch", 1)
    assert len(data.clients) == 20
    assert data.test.inputs.shape[1:] == (6, 100)
    parts = [part.inputs for part in (*data.clients, data.valid, data.test)]
    sums = torch.cat([part.double().sum((1, 2)) for part in parts])
    assert len(sums.unique()) == len(sums)
    assert set(data.test.classes.tolist()) == set(range(7))
    assert len(data.test.classes) > 1.5 * len(data.valid.classes)


@pytest.mark.parametrize("shape", [(1, 8, 8), (6, 100)])
@pytest.mark.parametrize("name", ["MLP", "CNN"])
def test_first_weights_depend_on_the_seed_alone(name, shape):
    inputs = torch.randn(3, *shape)
    before = torch.random.get_rng_state()
    networks = [make_network(name, inputs, 7, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    first, same, other = (network(inputs) for network in networks)
    assert first.shape == (3, 7)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
