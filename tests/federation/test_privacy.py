"""Differential privacy: bounds, noise and cohorts are what epsilon rests on."""

from __future__ import annotations

from dataclasses import replace
from math import comb, erf, exp, log, sqrt

import numpy as np
import pytest
import torch
from conftest import TINY, slow
from population import (
    DIM,
    N_ITEMS,
    TRAINING,
    federation,
    mf,
    ncf,
    note_messages,
    ready_methods,
    simulate,
)

from recbole_fedras.compressor.base import RoundContext, RowUpdate
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.config.private import check_deployed
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.federation.privacy import LocalDP
from recbole_fedras.federation.server.private import DPFedAvg
from recbole_fedras.federation.server.selection import sample_cohort, secret_cohort
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.federation.transforms import SharedUpdate
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.privacy import epsilon
from recbole_fedras.run.trainer import FederatedTrainer
from recbole_fedras.wire.message import Kind

CTX = RoundContext(round=3, seed=7, n_items=500, dim=16)


def change(seed: int, norm: float, ctx=CTX, n_theta=40):
    """Return some rows and a network, of a norm together."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(ctx.n_items, 30, replace=False))
    values = rng.standard_normal(30 * ctx.dim + n_theta).astype(np.float32)
    values *= norm / np.linalg.norm(values)
    rows = torch.from_numpy(values[: 30 * ctx.dim].reshape(30, ctx.dim))
    return RowUpdate(torch.from_numpy(ids), rows), torch.from_numpy(values[-n_theta:])


def mean_of(changes, ctx=CTX, expected=10.0, **keys) -> torch.Tensor:
    """All values of the mean, the network's last."""
    mean = DPFedAvg(**keys)
    mean.expect(ctx, expected, n_theta=40)
    mean.begin(torch.zeros(ctx.n_items, ctx.dim))
    for client, (rows, theta) in enumerate(changes):
        mean.add(client, rows, theta)
    update, theta = mean.result()
    assert update.ids.tolist() == list(range(ctx.n_items))
    return torch.cat([update.rows.flatten(), theta])


def poisson(model, data, fraction, aggregator, n_rounds=3, **keys) -> Simulation:
    settings = federation(fraction, sampling="poisson", **keys)
    methods = replace(ready_methods(NoCompression(), settings), aggregator=aggregator)
    simulation = Simulation(model, data, methods, settings, TRAINING)
    for _ in range(n_rounds):
        simulation.run_round()
    return simulation


def test_noise_has_its_deviation_in_every_row_and_in_the_network():
    keys = {"clip_norm": 0.5, "dp_noise_multiplier": 2.0}
    noise = 10 * mean_of([], **keys)
    n = len(noise)
    assert n == 500 * 16 + 40
    assert float(noise.std()) == pytest.approx(1.0, abs=4 / sqrt(2 * n))
    assert abs(float(noise.mean())) < 4 / sqrt(n)
    assert len(noise.unique()) > 0.99 * n  # no value has another's
    assert torch.equal(noise, 10 * mean_of([], **keys))
    other_round = mean_of([], replace(CTX, round=4), **keys)
    assert abs(float(torch.corrcoef(torch.stack([noise, other_round]))[0, 1])) < 0.05
    of_compressor = CTX.generator().standard_normal(n)  # its draws are others
    assert abs(np.corrcoef(noise.numpy(), of_compressor)[0, 1]) < 0.05


@pytest.mark.parametrize("keys", [{}, {"clip_norm": 0.5}])
def test_noise_of_the_operating_system_is_never_the_same(keys):
    first, second = (
        mean_of([], dp_noise_multiplier=2.0, dp_noise_source="os", **keys)
        for _ in range(2)
    )
    assert float((first - second).std()) == pytest.approx(
        sqrt(2) * 0.2 * keys.get("clip_norm", 1.0), rel=0.05
    )


@pytest.mark.parametrize("norm", [0.3, 5.0, 1e6])
def test_a_sum_changes_by_the_clip_norm_at_most_with_one_client(norm):
    """And the divisor does not change at all."""
    keys = {"clip_norm": 0.5, "dp_noise_multiplier": 1.0}
    others = [change(seed, 2.0) for seed in range(5)]
    without, with_it = (
        mean_of(others, **keys),
        mean_of([*others, change(9, norm)], **keys),
    )
    moved = 10 * float((with_it - without).double().norm())
    assert moved == pytest.approx(min(norm, 0.5), rel=1e-4)


@pytest.mark.parametrize("make", [slow(mf), ncf])
def test_without_noise_and_clipping_it_is_fedavg_to_the_bit(make, data):
    private = DPFedAvg(clip_norm=1e9, dp_noise_multiplier=0.0)
    found = poisson(make(), data, 1.0, private, aggregation="fedavg")
    plain = simulate(
        make(), data, NoCompression(), fraction=1.0, rates=(0.0,), aggregation="fedavg"
    )
    for _ in range(3):
        plain.run_round()
    for simulation in (found, plain):
        assert simulation.server.invitations.max() == 3
    expected, parameters = plain.server.parameters, found.server.parameters
    assert torch.equal(parameters.item_table, expected.item_table)
    assert torch.equal(parameters.theta, expected.theta)
    assert torch.equal(found.shard.user_rows, plain.shard.user_rows)


def test_cohorts_of_the_operating_system_are_never_the_same(data):
    first, second = (
        poisson(mf(), data, 0.5, DPFedAvg(dp_noise_source="os")) for _ in range(2)
    )
    assert first.server.invitations.tolist() != second.server.invitations.tolist()


def by_seed(clients, fraction, round):
    return sample_cohort(clients, fraction, 1, round)


def by_system(clients, fraction, round):
    return secret_cohort(clients, fraction)


@pytest.mark.parametrize("draw", [by_seed, by_system])
def test_each_client_takes_part_by_itself(draw):
    clients = np.arange(100, 140)
    cohorts = [draw(clients, 0.3, round) for round in range(500)]
    drawn = np.array([np.isin(clients, cohort) for cohort in cohorts])
    deviation = sqrt(0.3 * 0.7 / 500)
    assert np.abs(drawn.mean(axis=0) - 0.3).max() < 4 * deviation
    together = np.cov(drawn.T.astype(float))[np.triu_indices(40, 1)]
    assert abs(together.mean()) < 4 * 0.21 / sqrt(500 * 780)  # fixed sizes: -0.0054
    assert drawn.sum(axis=1).std() == pytest.approx(sqrt(40 * 0.21), rel=0.1)


def test_a_round_of_nobody_adds_noise_and_is_a_round(data):
    found = poisson(mf(), data, 1e-9 + 1 / 12, DPFedAvg(1.0, 0.1), n_rounds=0)
    before = found.server.parameters.item_table.clone()
    sizes = []
    while 0 not in sizes:
        sizes.append(found.run_round().n_clients)
        after = found.server.parameters.item_table
        assert bool((after != before).any(dim=1).all())
        before = after.clone()
    assert found.round == len(sizes)


def test_a_local_update_tells_neither_its_rows_nor_its_samples(data, monkeypatch):
    simulation = simulate(
        ncf(),
        data,
        NoCompression(),
        fraction=0.5,
        rates=(0.0,),
        report_loss=False,
        transforms=(LocalDP(0.5, 3.0),),
    )
    booked = note_messages(simulation, monkeypatch)
    simulation.run_round()
    updates = [one for one in booked if one.header.kind is Kind.UPDATE]
    assert len(updates) == 6
    assert {(one.header.n_samples, one.header.loss) for one in updates} == {(1, None)}
    assert len({len(one) for one in updates}) == 1
    assert {len(one.payload.rows("rows", N_ITEMS)) for one in updates} == {N_ITEMS}
    sent = np.array([one.payload.floats("values", N_ITEMS, DIM) for one in updates])
    assert sent.std() == pytest.approx(1.5, rel=0.1)
    assert np.abs(np.corrcoef(sent.reshape(6, -1)) - np.eye(6)).max() < 0.3


def test_a_local_update_is_clipped_before_the_noise():
    rows, theta = change(1, 40.0)
    given, ctx = SharedUpdate(rows, theta), replace(CTX, sender=4)
    transform, silent = LocalDP(0.5, 1.0), LocalDP(0.5, 0.0)
    clipped = silent.on_client(given, ctx)
    assert clipped.norm() == pytest.approx(0.5, rel=1e-5)
    noise = transform.noise(ctx, 500 * 16 + 40)
    noisy = transform.on_client(given, ctx)
    expected = clipped.items.rows + torch.from_numpy(noise[:8000].reshape(500, 16))
    assert torch.allclose(noisy.items.rows.double(), expected, atol=1e-6)


def by_binomials(z: float, q: float, releases: int, delta: float) -> float:
    """Renyi divergences of whole orders (Mironov, Talwar and Zhang, section 3.3)."""

    def at(order: int) -> float:
        terms = [
            log(comb(order, k))
            + k * log(q)
            + ((order - k) * log(1 - q) if k < order else 0)
            + (k * k - k) / (2 * z * z)
            for k in range(order + 1)
            if q < 1 or k == order
        ]
        rdp = np.logaddexp.reduce(terms) / (order - 1)
        return releases * rdp + log(1 - 1 / order) - log(delta * order) / (order - 1)

    return float(min(at(order) for order in range(2, 65)))


def exact_delta(epsilon: float, mu: float) -> float:
    """Delta of a Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8)."""

    def below(x: float) -> float:
        return (1 + erf(x / sqrt(2))) / 2

    first = below(mu / 2 - epsilon / mu)
    return first - exp(epsilon) * below(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(
    ("z", "q", "releases"), [(1.0, 0.1, 100), (2.0, 0.01, 1000), (4.0, 1.0, 40)]
)
def test_epsilon_is_what_other_formulas_say(z, q, releases):
    found = epsilon(z, q, releases, 1e-5)
    of_whole_orders = by_binomials(z, q, releases, 1e-5)
    assert 0.98 * of_whole_orders < found <= of_whole_orders * (1 + 1e-9)
    if q == 1:  # all releases together are one Gaussian mechanism
        mu = sqrt(releases) / z
        assert exact_delta(found, mu) <= 1e-5 < exact_delta(0.85 * found, mu)


def test_rounds_that_are_done_again_with_other_noise_count_again(
    workspace, monkeypatch
):
    """What began before a run was killed may have been seen."""
    keys = [key for key in TINY if "epochs" not in key and "fraction" not in key]
    keys += ["--dp_noise_source=os", "--compressor=none", "--client_fraction=1"]
    keys += ["--transforms=local_dp", "--report_loss=False", "--epochs=5"]
    with monkeypatch.context() as patch:
        patch.setattr(FederatedTrainer, "_save_last", fail_from_round(3))
        with pytest.raises(OSError, match="killed"):
            run_recbole_fedras(argv=keys)
    (last,) = workspace.glob("saved/*/last.pth")
    told = run_recbole_fedras(argv=[f"--resume={last}"])
    assert told["rounds"] == 5
    assert told["privacy"]["releases"] == 6  # the third round twice
    (folder,) = {path.parent for path in workspace.glob("saved/*/last.pth")} - {
        last.parent
    }
    again = run_recbole_fedras(argv=[f"--resume={folder / 'best.pth'}"])
    begun = read_checkpoint(folder / "best.pth")["epoch"] + 1
    assert again["privacy"]["releases"] == 6 + 5 - begun
    (last.parent / "rounds_begun").unlink()
    with pytest.raises(DataError, match="rounds_begun is missing"):
        run_recbole_fedras(argv=[f"--resume={last}"])


def fail_from_round(n):
    """Return what saves as a trainer does, and fails once n rounds are over."""
    save = FederatedTrainer._save_last

    def failing(self, rounds=True):
        if self.simulation.round >= n:
            raise OSError("killed")
        return save(self, rounds)

    return failing


REFUSED = [
    (
        ["--aggregation=dp_fedavg", "--sampling=fixed"],
        "sampling='fixed' is not allowed",
    ),
    (["--aggregation=dp_fedavg", "--transforms=clip_rows"], "clip_rows is not allowed"),
    *(
        (
            ["--aggregation=dp_fedavg", f"--transforms={other}", "--report_loss=False"],
            f"'dp_fedavg' and transform='{other}' both have the key 'clip_norm'",
        )
        for other in ("clip", "local_dp")
    ),
    (["--aggregation=dp_fedavg", "--dp_delta=2"], "dp_delta=2"),
    (["--aggregation=dp_fedavg", "--dp_noise_multiplier=-1"], "dp_noise_multiplier=-1"),
    (["--aggregation=dp_fedavg", "--clip_norm=0"], "clip_norm=0"),
    (["--aggregation=dp_fedavg", "--dp_noise_source=me"], "dp_noise_source='me'"),
    (["--transforms=local_dp"], "report_loss=True is not allowed"),
]


@pytest.mark.parametrize(("keys", "said"), REFUSED)
def test_what_would_make_a_guarantee_false_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        Config(argv=[*TINY, *keys])


def test_a_deployments_noise_must_not_follow_from_the_seed():
    keys = [*TINY, "--aggregation=dp_fedavg"]
    with pytest.raises(ConfigError, match="dp_noise_source='seed' is not allowed"):
        check_deployed(Config(argv=keys))
    check_deployed(Config(argv=[*keys, "--dp_noise_source=os"]))
    check_deployed(Config(argv=TINY))


def test_a_run_tells_its_epsilon(workspace, capsys):
    keys = ["--dp_noise_multiplier=2", "--compressor=none"]
    central = run_recbole_fedras(argv=[*TINY, *keys, "--aggregation=dp_fedavg"])
    told = central["privacy"]
    assert (told["mode"], told["releases"]) == ("central", 3)
    assert told["delta"] == pytest.approx(40**-1.1)
    expected = by_binomials(2.0, 0.25, 3, told["delta"])
    assert told["epsilon"] == pytest.approx(expected, rel=0.02)
    assert f"epsilon {told['epsilon']:.3g}" in capsys.readouterr().out

    keys += ["--transforms=local_dp", "--report_loss=False", "--dp_delta=1e-3"]
    told = run_recbole_fedras(argv=[*TINY, *keys])["privacy"]
    assert (told["mode"], told["delta"]) == ("local", 1e-3)
    most = told["releases"]
    assert 1 <= most <= 3
    expected = by_binomials(1.0, 1.0, most, 1e-3)
    assert told["epsilon"] == pytest.approx(expected, rel=0.02)
