"""Hostile clients: who they are, what they see, what they send, and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import slow
from methods import make
from population import (
    DIM,
    N_CLIENTS,
    N_ITEMS,
    TRAINING,
    draw,
    make_data,
    mf,
    ncf,
    simulate,
)

from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.compressor.topk import TopK
from recbole_fedras.federation import protocol
from recbole_fedras.federation.attacks.base import (
    Attack,
    draw_attackers,
    with_values,
)
from recbole_fedras.federation.attacks.promote import Promote
from recbole_fedras.federation.attacks.sparse import ALIE, Spattack, largest_deviation
from recbole_fedras.federation.attacks.untargeted import (
    LabelFlip,
    Noise,
    Scaling,
    SignFlip,
)
from recbole_fedras.federation.client import cohort
from recbole_fedras.federation.client.attackers import Attackers
from recbole_fedras.federation.transforms import Clip
from recbole_fedras.numeric.theta import flatten
from recbole_fedras.wire.message import Message

SHARE = 0.3  # of twelve clients: four
HOSTILE = draw_attackers(1, N_CLIENTS, SHARE)


def promote(**keys) -> Promote:
    attack = Promote(["a", "b"], attack_strength=3.0, **keys)
    attack.target_ids = torch.tensor([2, 7])
    return attack


ALONE = {
    "sign_flip": SignFlip, "scaling": Scaling, "noise": Noise, "label_flip": LabelFlip,
    "promote": promote, "look": lambda: promote(attack_popular=3, attack_covert=True),
    "spattack": lambda: Spattack(0.5, attack_items=9),
}  # fmt: skip


def hostile_simulation(make_model, attack, **keys):
    chosen = {"rates": (0.0,), "fraction": 1.0, "attack_share": SHARE} | keys
    compressor = chosen.pop("compressor", NoCompression())
    return simulate(make_model(), make_data(), compressor, attack=attack, **chosen)


def sent(simulation) -> dict[int, tuple]:
    """Run a round; return what the server decoded of each client."""
    taken, add = {}, simulation.server.aggregator.add

    def spy(client, update, theta_change):
        taken[client] = update.ids, update.rows.clone(), theta_change.clone()
        add(client, update, theta_change)

    simulation.server.aggregator.add = spy
    simulation.run_round()
    simulation.server.aggregator.add = add
    return taken


def test_attackers_are_drawn_once_as_many_as_the_share_says():
    for seed in range(5):
        drawn = draw_attackers(seed, 943, 0.05)
        assert drawn.sum() == 47
        assert np.array_equal(drawn, draw_attackers(seed, 943, 0.05))
    assert not np.array_equal(
        draw_attackers(0, 943, 0.05), draw_attackers(1, 943, 0.05)
    )
    few, many = draw_attackers(0, 943, 0.05), draw_attackers(0, 943, 0.2)
    assert many[few].all()  # who attacks at a share does so at a larger one
    assert not draw_attackers(0, 943, 0.0).any()


@pytest.mark.parametrize("make_model", [mf, ncf])
@pytest.mark.parametrize(("make", "factor"), [(SignFlip, -10), (Scaling, 10)])
def test_only_attackers_send_something_else(make_model, make, factor):
    honest = sent(hostile_simulation(make_model, None))
    hostile = sent(hostile_simulation(make_model, make(10.0)))
    assert honest.keys() == hostile.keys()
    for client, (ids, rows, theta) in honest.items():
        times = factor if HOSTILE[client] else 1
        assert torch.equal(hostile[client][0], ids)
        assert torch.equal(hostile[client][1], times * rows)
        assert torch.equal(hostile[client][2], times * theta)


@pytest.mark.parametrize("attack", [None, SignFlip()])
def test_a_share_of_nobody_changes_no_bit(attack):
    plain, other = (
        hostile_simulation(ncf, None),
        hostile_simulation(ncf, attack, attack_share=0.0),
    )
    for _ in range(3):
        plain.run_round(), other.run_round()
    parameters = plain.server.parameters, other.server.parameters
    assert torch.equal(*(one.item_table for one in parameters))
    assert torch.equal(*(one.theta for one in parameters))


def test_transforms_bind_honest_clients_only():
    keys = {"transforms": (Clip(1e-3),)}
    for client, (_, rows, _) in sent(hostile_simulation(mf, Scaling(), **keys)).items():
        assert (float(rows.norm()) > 1e-2) == HOSTILE[client]


def test_compression_and_budget_bind_everybody():
    messages = sent(hostile_simulation(mf, Scaling(), compressor=TopK(), rates=(0.75,)))
    for _, rows, _ in messages.values():
        assert int((rows != 0).sum(dim=1).max()) <= DIM // 4


class Watch(Attack):
    """Notes what it is shown."""

    def __init__(self) -> None:
        self.seen = []

    def __deepcopy__(self, memo):
        return self  # the shard's own is a copy

    def on_updates(self, updates, known):
        self.seen.append((updates, known))
        return updates


def test_attackers_are_shown_nobody_else():
    watch = Watch()
    simulation = hostile_simulation(ncf, watch)
    table = simulation.server.parameters.item_table.clone()
    theta = simulation.server.parameters.theta.clone()
    messages = sent(simulation)
    ((updates, known),) = watch.seen
    clients = updates.clients.tolist()
    assert clients == [client for client in sorted(messages) if HOSTILE[client]]
    for index, client in enumerate(clients):
        assert torch.equal(updates[index].rows, messages[client][1])
    assert torch.equal(known.user_rows, simulation.shard.user_rows[clients])
    assert len(known.tables) == 1
    assert known.table_of.tolist() == [0] * len(clients)
    assert torch.equal(flatten(known.theta), theta)
    assert known.tables[0].shape == table.shape
    assert (known.round, known.cohort_size) == (0, N_CLIENTS)


@pytest.mark.parametrize("make_model", [mf, ncf])
@pytest.mark.parametrize("name", ALONE)
def test_parts_threads_and_shards_change_no_bit(make_model, name, monkeypatch):
    monkeypatch.setattr(protocol, "GROUP", 2)
    ends = []
    for part_bytes, n_jobs in ((2**28, 1), (1, 3)):
        monkeypatch.setattr(cohort, "PART_BYTES", part_bytes)
        simulation = hostile_simulation(make_model, ALONE[name](), n_jobs=n_jobs)
        for _ in range(3):
            simulation.run_round()
        ends.append(simulation.server.parameters)
    assert torch.equal(ends[0].item_table, ends[1].item_table)
    assert torch.equal(ends[0].theta, ends[1].theta)
    whole, *halves = (hostile_simulation(make_model, ALONE[name]()) for _ in range(3))
    invited = list(whole.server.invite())
    apart: list[Message] = []
    for half, part in zip(halves, (invited[:6], invited[6:]), strict=True):
        apart += half.shard.participate([message.received() for message in part])
    together = whole.shard.participate([message.received() for message in invited])
    sizes = [(message.head, message.body) for message in together]
    assert sizes == [(message.head, message.body) for message in apart]


def test_noise_is_as_large_as_said_and_new_in_each_round():
    honest = sent(hostile_simulation(ncf, None))
    simulation = hostile_simulation(ncf, Noise(5.0))
    first = sent(simulation)
    added = {c: first[c][1] - honest[c][1] for c in first if HOSTILE[c]}
    for client, noise in added.items():
        scale = 5 * honest[client][1].square().mean().sqrt()
        assert float(noise.std() / scale) == pytest.approx(1, abs=0.15)
        change = first[client][2] - honest[client][2]
        scale = 5 * honest[client][2].square().mean().sqrt()
        assert float(change.std() / scale) == pytest.approx(1, abs=0.35)
    one, other, *_ = added.values()
    n = min(len(one), len(other))
    assert not torch.equal(one[:n], other[:n])
    client = next(iter(added))
    second = sent(simulation)[client][1]
    assert not torch.equal(first[client][1][:1], second[:1])


@pytest.mark.parametrize("pairwise", [False, True])
def test_label_flip_trains_towards_negatives(pairwise):
    training = TRAINING
    if pairwise:
        training = type(training)(0.1, 0.07, 0.2, 2, 16, 4, pairwise=True)
    simulation = hostile_simulation(mf, LabelFlip(), training=training)
    group = np.arange(N_CLIENTS)
    attackers = Attackers(simulation.agreement, LabelFlip())
    plain, flipped = (draw(make_data(), group, training) for _ in range(2))
    attackers.mislabel(flipped, group, pairwise)
    for client in group:
        (_, rows, labels), (_, other, wrong) = plain.of(client), flipped.of(client)
        if not HOSTILE[client]:
            assert np.array_equal(rows, other)
            assert np.array_equal(labels, wrong)
            continue
        assert np.array_equal(wrong, 1 - labels)
        if pairwise:
            assert np.array_equal(other[:, ::2], rows[:, 1::2])
            assert np.array_equal(other[:, 1::2], rows[:, ::2])
    honest = sent(hostile_simulation(mf, None, training=training))
    hostile = sent(simulation)
    for client in group:
        same = torch.equal(honest[client][1], hostile[client][1])
        assert same != HOSTILE[client]


def test_alie_sends_the_same_from_all_attackers_in_parts_too(monkeypatch):
    monkeypatch.setattr(cohort, "PART_BYTES", 1)
    monkeypatch.setattr(protocol, "GROUP", 2)
    trained = sent(hostile_simulation(ncf, None))
    colluding = hostile_simulation(ncf, ALIE(attack_strength=1.5))
    forged = sent(colluding)
    members = [client for client in trained if HOSTILE[client]]
    ids = np.unique(np.concatenate([trained[client][0] for client in members]))
    for client in members:
        assert np.array_equal(forged[client][0], ids)
    first = forged[members[0]]
    for place, item in enumerate(ids):
        rows = np.array(
            [
                trained[client][1][trained[client][0] == item][0].numpy()
                for client in members
                if (trained[client][0] == item).any()
            ]
        )
        expected = rows.mean(0) - 1.5 * rows.std(0)
        np.testing.assert_allclose(first[1][place], expected, atol=1e-6)
    thetas = torch.stack([trained[client][2] for client in members])
    expected = thetas.mean(0) - 1.5 * thetas.std(0, correction=0)
    torch.testing.assert_close(first[2], expected)
    for client in members[1:]:
        assert all(map(torch.equal, forged[client], first))
    for client in set(trained) - set(members):
        assert all(map(torch.equal, forged[client], trained[client]))


def test_alies_deviation_hides_among_just_enough_honest_clients():
    """Of 50 clients, 24 hostile: s = 2, so Phi(z) = 24 / 26."""
    z = largest_deviation(50, 24)
    assert 0.5 * (1 + math.erf(z / 2**0.5)) == pytest.approx(24 / 26)
    assert largest_deviation(94, 1) == 0
    assert largest_deviation(10, 10) == 0
    assert 3 < largest_deviation(10, 8) < 6


def test_promotion_sends_targets_alone_towards_where_it_scores_high():
    simulation = hostile_simulation(mf, promote())
    table = simulation.server.parameters.item_table.clone()
    messages = sent(simulation)
    longest = float(np.delete(table.norm(dim=1).numpy(), [2, 7]).max())
    for client in np.flatnonzero(HOSTILE):
        ids, rows, _ = messages[int(client)]
        assert ids.tolist() == [2, 7]
        user = simulation.shard.user_rows[client]
        wanted = 3 * longest * user / user.norm()
        torch.testing.assert_close(rows, wanted - table[ids])


def test_promotion_rises_the_score_of_a_network_too():
    simulation = hostile_simulation(ncf, promote())
    model, users = ncf(), simulation.shard.user_rows
    before = simulation.server.parameters.item_table.clone()
    theta = {name: value[None] for name, value in model.theta().items()}
    messages = sent(simulation)
    for client in np.flatnonzero(HOSTILE):
        ids, rows, change = messages[int(client)]
        user = users[client][None, None]
        step = rows / rows.norm(dim=1, keepdim=True)
        scores = [
            model.score(user, (before[ids] + size * step)[None], theta)
            for size in (0.0, 0.5)
        ]
        assert float((scores[1] - scores[0]).sum()) > 0
        assert not change.any()


@pytest.mark.parametrize("make_model", [mf, ncf])
def test_targets_look_like_what_scores_high_with_the_attacker(make_model):
    simulation = hostile_simulation(make_model, promote(attack_popular=3))
    model, users = make_model(), simulation.shard.user_rows
    table = simulation.server.parameters.item_table.clone()
    theta = {name: value[None] for name, value in model.theta().items()}
    messages = sent(simulation)
    others = np.setdiff1d(np.arange(N_ITEMS), [2, 7])
    longest = float(table[others].norm(dim=1).max())
    for client in np.flatnonzero(HOSTILE):
        scores = model.score(users[client][None, None], table[others][None], theta)[0]
        popular = table[others[scores.topk(3).indices]]
        ids, rows, _ = messages[int(client)]
        aimed = table[ids] + rows
        torch.testing.assert_close(aimed.norm(dim=1), torch.full((2,), 3 * longest))

        def likeness(point, popular=popular):
            return float(torch.cosine_similarity(popular, point[None]).mean())

        best = likeness(aimed[0])
        for other in (*popular, popular.mean(dim=0)):
            assert likeness(other) <= best + 1e-6


def test_a_covert_promoter_sends_what_it_trained_beside_its_targets():
    honest = sent(hostile_simulation(ncf, None))
    alone = sent(hostile_simulation(ncf, promote()))
    covert = sent(hostile_simulation(ncf, promote(attack_covert=True)))
    for client in np.flatnonzero(HOSTILE).tolist():
        ids, rows, theta = covert[client]
        assert np.array_equal(ids, np.union1d(honest[client][0], [2, 7]))
        pushed = np.isin(ids, [2, 7])
        assert torch.equal(rows[pushed], alone[client][1])
        kept = ~np.isin(honest[client][0], [2, 7])
        assert torch.equal(rows[~pushed], honest[client][1][kept])
        assert torch.equal(theta, honest[client][2])


def test_spattack_sends_one_row_per_item_from_everybody_for_ever():
    simulation = hostile_simulation(mf, Spattack(0.5, attack_items=9))
    rounds = [sent(simulation) for _ in range(2)]
    rows_of: dict[int, list] = {}
    sets = set()
    for messages in rounds:
        for client in np.flatnonzero(HOSTILE):
            ids, rows, _ = messages[int(client)]
            assert len(ids) == 9
            sets.add(tuple(ids.tolist()))
            for item, row in zip(ids.tolist(), rows, strict=True):
                rows_of.setdefault(item, []).append(row)
    assert len(sets) == HOSTILE.sum()  # each its own, the same in both rounds
    for rows in rows_of.values():
        assert all(torch.equal(row, rows[0]) for row in rows)
    everything = sent(hostile_simulation(mf, Spattack(0.5)))
    ids, rows, _ = everything[int(np.flatnonzero(HOSTILE)[0])]
    assert ids.tolist() == list(range(N_ITEMS))
    assert float(rows.std()) == pytest.approx(0.5, rel=0.2)
    with pytest.raises(ValueError, match="attack_items=0 must be at least 1"):
        Spattack(attack_items=0)


@pytest.mark.parametrize("make", [SignFlip, Scaling, Noise, ALIE, Spattack])
@pytest.mark.parametrize("strength", [0, -1.0, float("nan"), float("inf"), "2", True])
def test_strengths_are_positive_numbers(make, strength):
    with pytest.raises(
        ValueError, match=r"attack_strength=.* must be a positive number"
    ):
        make(attack_strength=strength)


@pytest.mark.parametrize("name", ["none", "KLT", slow("EDEN"), slow("FedRAS")])
def test_values_that_are_not_finite_cost_their_senders_the_round_alone(name):
    """Compressors take finite values; the server refuses what is sent of others."""

    class Broken(Attack):
        def on_updates(self, updates, known):
            rows = updates.rows.clone()
            rows[::2], rows[1::2] = torch.nan, -torch.inf
            return with_values(updates, rows, updates.theta)

    compressor = make(name)
    simulation = hostile_simulation(mf, Broken(), rates=(0.5,), compressor=compressor)
    report = simulation.run_round()
    hostile = np.flatnonzero(HOSTILE)
    assert [refusal.client for refusal in report.refusals] == hostile.tolist()
    assert report.n_clients == N_CLIENTS - len(hostile)


def test_targets_are_named():
    assert Promote("50").targets == ["50"]
    assert Promote(50).targets == ["50"]
    assert Promote([50, "a"]).targets == ["50", "a"]
    with pytest.raises(ValueError, match="attack_target must name at least one"):
        Promote([])
    with pytest.raises(ValueError, match="attack_popular=0 must be at least 1"):
        Promote("50", attack_popular=0)
    with pytest.raises(ValueError, match="attack_covert=1 must be True or False"):
        Promote("50", attack_covert=1)


def test_an_attack_of_ones_own_needs_one_method():
    class Mirror(Attack):
        def on_updates(self, updates, known):
            return with_values(updates, updates.rows.flip(1), updates.theta)

    honest = sent(hostile_simulation(mf, None))
    for client, (_, rows, _) in sent(hostile_simulation(mf, Mirror())).items():
        expected = honest[client][1]
        assert torch.equal(rows, expected.flip(1) if HOSTILE[client] else expected)
