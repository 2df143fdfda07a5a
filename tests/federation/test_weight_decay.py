"""Weight decay against torch's optimizers, where every row is touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import rounds_of
from population import DIM, N_ITEMS, TRAINING, draw, mf, ncf, train_groups
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from recbole_fedras.data.clients import ClientData

DENSE = replace(TRAINING, batch_size=10**6, n_negatives=60, weight_decay=0.3)


@pytest.mark.parametrize("user_optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [mf, ncf])
def test_it_is_torchs_where_every_row_is_touched(make, compiled, user_optimizer):
    """The mean loss of the network is the sum at a rate of one sample."""
    few = ClientData.from_pairs(np.zeros(4, np.int64), np.arange(4), 1, N_ITEMS)
    training = replace(DENSE, user_optimizer=user_optimizer)
    samples, model = draw(few, [0], training), make()
    rows, labels = (samples.of(0)[1], torch.from_numpy(samples.of(0)[2]))
    assert all(set(samples.ids[epoch]) == set(range(N_ITEMS)) for epoch in rows)

    state = torch.zeros(1, 2 * DIM + 1) if user_optimizer == "adam" else None
    trained = train_groups(model, [0], [samples], compiled, training, states=state)

    user, table = model.user_rows()[:1].clone(), model.item_table().clone()
    theta = {name: value.clone() for name, value in model.theta().items()}
    leaves = [leaf.requires_grad_() for leaf in (user, table, *theta.values())]
    decay, adam = DENSE.weight_decay, user_optimizer == "adam"
    of_users = torch.optim.Adam if adam else torch.optim.SGD
    optimizers = [
        of_users(leaves[:1], lr=DENSE.user_learning_rate, weight_decay=decay),
        torch.optim.SGD(leaves[1:2], lr=DENSE.learning_rate, weight_decay=decay),
    ]
    if theta:
        rate = DENSE.theta_learning_rate
        optimizers.append(torch.optim.SGD(leaves[2:], lr=rate, weight_decay=decay))
    for row, label in zip(rows, labels, strict=True):
        named = {name: value[None] for name, value in theta.items()}
        logits = model.score(user[None], table[samples.ids[row]][None], named)[0]
        loss = bce(logits, label, reduction="sum")
        for leaf, gradient in zip(
            leaves, torch.autograd.grad(loss, leaves), strict=True
        ):
            leaf.grad = gradient if leaf is user or leaf is table else gradient / 244
        assert len(label) == 244
        for optimizer in optimizers:
            optimizer.step()

    torch.testing.assert_close(trained.user_rows, user, rtol=1e-4, atol=1e-5)
    change = table - model.item_table()
    torch.testing.assert_close(trained.updates[0].rows, change, rtol=1e-3, atol=1e-4)
    if theta:
        flat = torch.cat(
            [(theta[name] - old).flatten() for name, old in model.theta().items()]
        )
        torch.testing.assert_close(trained.updates.theta[0], flat, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("item_embedding", ["full", "lora"])
def test_it_is_a_key_that_keeps_parameters_small(run, item_embedding):
    """And no update has more rows for it: the bytes are the same."""
    plain, decayed = (
        run(compressor="none", item_embedding=item_embedding, weight_decay=decay)
        for decay in (0, 0.5)
    )
    assert decayed["communication"] == plain["communication"]
    losses = [float(rounds_of(result)[-1]["loss"]) for result in (plain, decayed)]
    assert losses[0] < losses[1] < np.log(2) * 1.01
