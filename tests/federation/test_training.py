"""Local training against a naive reference written from the definition."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product, starmap

import numpy as np
import pytest
import torch
from conftest import slow
from population import DIM, N_ITEMS, TRAINING, mf, naive_client, ncf, samples_of, train
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from recbole_fedras.compressor import Budget, RoundContext
from recbole_fedras.compressor.colr import CoLR
from recbole_fedras.embedding.base import LocalRows
from recbole_fedras.federation.client.group import Group
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.model import MF, NCF
from recbole_fedras.model.ncf import _losses

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


# rho_shared, rho_private, weight_decay: numba compiles ints anew
HOW = [(0.0, 0.0, 0.0), (0.3, 0.2, 0.5), (0.3, 0.0, 0.0), (0.0, 0.2, 0.0)]
SHAPES = [(), (5, 4, 3)]  # of NCF's layers


@pytest.mark.parametrize(
    ("make", "how", "pairwise"),
    [
        *product([mf, ncf], HOW[:2], [False, True]),
        *starmap(slow, product([mf, ncf], HOW[2:], [False])),
        *(slow(partial(ncf, shape), how, bool(i % 2))
          for i, (how, shape) in enumerate(product(HOW[:2], SHAPES))),
    ],
)  # fmt: skip
def test_cohort_training_equals_a_naive_loop_over_clients(make, how, pairwise, data):
    named = dict(zip(("rho_shared", "rho_private", "weight_decay"), how, strict=True))
    training = replace(TRAINING, **named, pairwise=pairwise)
    model, clients = make(), [0, 2, 3, 7, 8, 11]
    samples = samples_of(data, clients, training)
    naive = [
        naive_client(model, client, sample, training)
        for client, sample in zip(clients, samples, strict=True)
    ]
    counts = [sample.rows.size // (1 + pairwise) for sample in samples]
    groups = (64, 1), (4, 1), (1, 3)  # of clients, in threads
    for (group, n_jobs), compiled in product(groups, (False, True)):
        trained = train(
            model, data, clients, compiled, training, group=group, n_jobs=n_jobs
        )
        assert trained.n_samples.tolist() == counts
        for index, (user, change, theta) in enumerate(naive):
            update = trained.updates[index]
            close(trained.user_rows[index], user)
            dense = torch.zeros(N_ITEMS, DIM)
            dense[update.ids] = update.rows
            close(dense, change)
            assert update.ids.tolist() == samples[index].ids.tolist()
            if theta is not None:
                close(trained.updates.theta[index], theta, rtol=1e-3)


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [mf, ncf])
def test_each_client_has_a_loss_of_its_own(make, compiled, pairwise, data):
    """With a batch of everything, the first epoch's is that of the start."""
    training = replace(TRAINING, local_epochs=1, batch_size=10**6, pairwise=pairwise)
    model, clients = make(), [0, 3, 7, 8, 11]
    trained = train(model, data, clients, compiled, training, group=3)
    for index, sample in enumerate(samples_of(data, clients, training)):
        items = torch.from_numpy(sample.ids[sample.rows[0]])
        logits = model.score(
            model.user_rows()[clients[index]][None, None],
            model.item_table()[None][0, items][None],
            {name: value[None] for name, value in model.theta().items()},
        )[0]
        expected = bce(logits, torch.from_numpy(sample.labels[0]), reduction="sum")
        if pairwise:
            expected = torch.log1p(torch.exp(logits[1::2] - logits[::2])).sum()
        assert trained.losses[index].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [mf, ncf])
def test_only_the_client_that_diverged_has_a_loss_that_is_not_finite(
    make, compiled, data
):
    model, clients = make(), [1, 4, 9]
    model.user_rows()[4] = 3e38
    trained = train(model, data, clients, compiled)
    assert not trained.losses[1].isfinite()
    assert trained.losses[[0, 2]].isfinite().all()


@pytest.mark.parametrize("field", ["users", "changes", "theta_changes"])
def test_a_result_that_is_not_finite_shows_in_the_clients_loss(field):
    """Whichever it is, even if the loss was finite when it was added up."""
    local = LocalRows(np.array([0, 2, 3]), np.arange(3), np.arange(3)[:, None])
    results = {
        "users": torch.ones(2, 4),
        "changes": torch.ones(3, 4),
        "theta_changes": torch.ones(2, 5),
    }
    results[field][-1, 1] = -torch.inf
    group = Group(None, local, None, None, states=None, **results)
    losses = group.mark(torch.tensor([1.5, 2.5], dtype=torch.float64))
    assert losses[0] == 1.5
    assert losses[1].isnan()


@pytest.mark.parametrize("pairwise", [False, True])
def test_slopes_are_those_of_the_loss_however_far_from_zero(pairwise):
    logits = torch.linspace(-45, 45, 92)[:, None].requires_grad_()
    labels = (torch.arange(92) % 3 == 0).float()
    if pairwise:
        order = torch.stack([torch.arange(91, 45, -1), torch.arange(46)], 1).flatten()
        logits = logits.detach()[order].requires_grad_()
        loss = -torch.nn.functional.logsigmoid(logits[::2] - logits[1::2]).sum()
    else:
        loss = bce(logits[:, 0], labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, logits)
    slopes = np.empty((92, 1), np.float32)
    own = _losses(logits.detach().numpy(), labels.numpy(), pairwise, slopes)
    assert own == pytest.approx(loss.item(), rel=1e-5)
    atol = 0 if pairwise else 1e-7
    np.testing.assert_allclose(slopes, expected.numpy(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("rho", "decay"), [(0.0, 0.0), (0.3, 0.5)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [mf, ncf])
def test_gradients_of_items_are_mapped(make, compiled, rho, decay, data):
    """So is what decays: an update stays in its subspace."""
    named = {"rho_shared": rho, "rho_private": rho, "weight_decay": decay}
    training, model = replace(TRAINING, **named), make()
    mapping = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))
    trained = train(model, data, [5], compiled, training, mapping)
    sample = samples_of(data, [5], training)[0]
    user, change, _ = naive_client(model, 5, sample, training, mapping)
    torch.testing.assert_close(trained.user_rows[0], user, rtol=1e-4, atol=1e-5)
    rows = trained.updates[0].rows
    torch.testing.assert_close(rows, change[sample.ids], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [mf, ncf])
def test_a_client_does_not_depend_on_its_cohort(make, compiled, data):
    together = train(make(), data, [1, 4, 9], compiled)
    alone = train(make(), data, [4], compiled)
    pairs = [
        (together.user_rows[1], alone.user_rows[0]),
        (together.updates[1].rows, alone.updates[0].rows),
        (together.updates.theta[1], alone.updates.theta[0]),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert torch.equal(one, other) or not compiled


@pytest.mark.parametrize("compiled", [False, True])
def test_colr_trains_the_factor(compiled, data):
    """Training A explicitly, W = W0 + A B, gives the same iterates as the map."""
    budget, ctx = Budget(N_ITEMS, DIM, 0.75), RoundContext(0, 1, N_ITEMS, DIM)
    mapping = CoLR().gradient_map(budget, ctx)
    model, rank = mf(), 2
    trained = train(model, data, [5], compiled, mapping=mapping)
    # B up to rotation, which the iterates do not depend on: B'B = mapping sqrt(d/r).
    values, vectors = torch.linalg.eigh(mapping.double() * (DIM / rank) ** 0.5)
    basis = (vectors[:, -rank:] * values[-rank:].sqrt()).T.float()
    torch.testing.assert_close(
        basis @ basis.T, torch.eye(rank) * DIM / rank, rtol=1e-4, atol=1e-4
    )
    user = model.user_rows()[5].clone().requires_grad_()
    factor = torch.zeros(N_ITEMS, rank, requires_grad=True)
    sample = samples_of(data, [5])[0]
    for rows, labels in zip(sample.rows, sample.labels, strict=True):
        for start in range(0, len(rows), TRAINING.batch_size):
            own = slice(start, start + TRAINING.batch_size)
            items = torch.from_numpy(sample.ids[rows[own]])
            logits = ((model.item_table() + factor @ basis)[items] * user).sum(1)
            loss = bce(logits, torch.from_numpy(labels[own]), reduction="sum")
            user_gradient, gradient = torch.autograd.grad(loss, [user, factor])
            with torch.no_grad():
                user -= TRAINING.user_learning_rate * user_gradient
                factor -= TRAINING.learning_rate * (rank / DIM) ** 0.5 * gradient
    expected = (factor @ basis).detach()[torch.from_numpy(sample.ids)]
    torch.testing.assert_close(trained.updates[0].rows, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        trained.user_rows[0], user.detach(), rtol=1e-4, atol=1e-5
    )


def test_another_score_does_not_inherit_compiled_training():
    class Halved(MF):
        def score(self, user_rows, item_rows, theta):
            return super().score(user_rows, item_rows, theta) / 2

    class Renamed(MF):
        pass

    class Half:
        score = Halved.score

    class Mixed(Half, MF):
        pass

    class Larger(NCF):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.scale = torch.nn.Parameter(torch.ones(1))

    class Claimed(Larger):
        train_clients = NCF.train_clients

    assert Halved.train_clients is None
    assert Mixed.train_clients is None
    assert Larger.train_clients is None
    assert Claimed.train_clients is NCF.train_clients
    assert Renamed.train_clients is MF.train_clients


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_larger_than_all_samples_is_the_whole_epoch(compiled, data):
    whole = LocalTraining(0.01, 0.01, 0.01, 2, 10**12, 4)
    exact = LocalTraining(0.01, 0.01, 0.01, 2, 5 * N_ITEMS, 4)
    pairs = [train(mf(), data, [1, 4], compiled, own) for own in (whole, exact)]
    assert torch.equal(*(trained.updates.rows for trained in pairs))
