"""Samples and cohorts: who is drawn, and what it trains on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from population import N_CLIENTS, TRAINING, Sample, samples_of

from recbole_fedras.data.clients import ClientData, draw_samples
from recbole_fedras.federation.server.selection import cohort_size, select_cohort
from recbole_fedras.numeric.rng import Stream, counter_key, uniform


def test_samples_hold_each_positive_once_and_no_positive_as_negative(data):
    for client in range(N_CLIENTS):
        sample = samples_of(data, [client])[0]
        positives = data.of(client)
        for rows, labels in zip(sample.rows, sample.labels, strict=True):
            items = sample.ids[rows]
            assert sorted(items[labels == 1]) == positives.tolist()
            assert not set(items[labels == 0]) & set(positives)
            assert (labels == 0).sum() == 4 * len(positives)
        assert sample.rows.max() == len(sample.ids) - 1
        assert (sample.labels[0] != sample.labels[1]).any() or len(positives) < 2


def test_negatives_are_uniform_over_what_is_left():
    clients = ClientData.from_pairs(np.zeros(2, int), np.array([0, 3]), 1, 6)
    key = counter_key(0, Stream.SAMPLES)
    sample = Sample(*draw_samples(clients, np.array([0]), 2000, 5, key).of(0))
    items = sample.ids[sample.rows[sample.labels == 0]]
    counts = np.bincount(items, minlength=6)
    assert counts[[0, 3]].tolist() == [0, 0]
    # 20,000 draws over 4 items: 5,000 each, standard deviation 61.
    assert np.abs(counts[[1, 2, 4, 5]] - 5000).max() < 300


def test_pairs_are_each_item_with_negatives_of_its_in_any_order(data):
    training = replace(TRAINING, pairwise=True)
    for client in range(N_CLIENTS):
        sample = samples_of(data, [client], training)[0]
        positives = data.of(client)
        orders = []
        for rows, labels in zip(sample.rows, sample.labels, strict=True):
            items = sample.ids[rows]
            assert labels.tolist() == [1, 0] * (4 * len(positives))
            assert sorted(items[::2]) == sorted([*positives] * 4)
            assert not set(items[1::2]) & set(positives)
            orders.append(items.tolist())
        assert orders[0] != orders[1]
        assert sorted(set(np.concatenate(orders))) == sample.ids.tolist()


def test_items_of_pairs_stand_at_uniform_places():
    clients = ClientData.from_pairs(np.zeros(3, int), np.array([0, 3, 4]), 1, 9)
    key = counter_key(0, Stream.SAMPLES)
    sample = Sample(*draw_samples(clients, np.array([0]), 1, 6000, key, True).of(0))
    items = sample.ids[sample.rows[:, ::2]]  # (6000, 3)
    for item in (0, 3, 4):
        counts = (items == item).sum(axis=0)
        assert (abs(counts - 2000) < 5 * (6000 * 2 / 9) ** 0.5).all()


def test_a_client_with_all_items_is_refused():
    users, items = np.zeros(4, int), np.arange(4)
    with pytest.raises(ValueError, match="all 4 items"):
        ClientData.from_pairs(users, items, 1, 4)


@pytest.mark.parametrize("pairwise", [False, True])
def test_a_client_without_items_draws_nothing(pairwise):
    data = ClientData.from_pairs(np.array([0, 2]), np.array([1, 3]), 3, 9)
    samples = draw_samples(data, np.arange(3), 2, 2, np.uint64(5), pairwise)
    counts = np.diff(samples.sample_offsets)
    assert counts[1] == 0
    assert counts[0] == counts[2] > 0
    assert np.diff(samples.row_offsets)[1] == 0
    assert len(samples.ids) == samples.row_offsets[-1]


def test_cohorts_are_reproducible_and_never_empty():
    eligible = np.arange(3, 103)
    assert cohort_size(943, 0.1) == 94
    first = select_cohort(eligible, 10, seed=1, round=5)
    assert first.tolist() == select_cohort(eligible, 10, 1, 5).tolist()
    assert first.tolist() != select_cohort(eligible, 10, 1, 6).tolist()
    assert len(set(first)) == 10
    assert set(first) <= set(eligible)
    with pytest.raises(ValueError, match=r"client_fraction=0\.001 of 100 clients"):
        cohort_size(100, 0.001)


def test_counter_based_numbers_are_splitmix64():
    """The first outputs of the reference implementation for seed 0."""
    reference = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    numbers = [uniform(np.uint64(0), counter) for counter in range(3)]
    assert numbers == [(output >> 11) * 2.0**-53 for output in reference]


def test_positives_stand_at_uniform_places():
    clients = ClientData.from_pairs(np.zeros(2, int), np.array([0, 3]), 1, 60)
    counts = np.zeros((2, 10), int)
    for round in range(3000):
        key = counter_key(0, Stream.SAMPLES, round)
        ids, rows, _ = draw_samples(clients, np.array([0]), 4, 1, key).of(0)
        for index, item in enumerate((0, 3)):
            counts[index] += ids[rows[0]] == item
    # 3,000 draws over 10 places: 300 each, standard deviation 16.
    assert np.abs(counts - 300).max() < 80


@pytest.mark.parametrize("n_items", [25, 5000])
def test_a_client_draws_the_same_in_any_group(n_items):
    """Whether its rows are found by passing over all items or by sorting."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(4), 6)
    items = np.concatenate([rng.choice(n_items, 6, replace=False) for _ in range(4)])
    clients = ClientData.from_pairs(users, items, 4, n_items)
    key = counter_key(5, Stream.SAMPLES)
    together = draw_samples(clients, np.array([0, 2, 3]), 3, 2, key)
    alone = draw_samples(clients, np.array([3]), 3, 2, key)
    for one, other in zip(together.of(2), alone.of(0), strict=True):
        assert np.array_equal(one, other)
    for client in range(3):
        ids, rows, _ = together.of(client)
        assert np.array_equal(ids, np.unique(ids[rows]))
