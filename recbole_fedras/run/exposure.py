"""How many users an attack's target items are recommended to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.data.clients import ClientData, Ints
from recbole_fedras.model import FederatedRecommender

#: Users whose scores of all items are held at a time.
USERS = 256


def exposure(
    model: FederatedRecommender, data: ClientData, targets: Tensor, topk: Sequence[int]
) -> dict[str, float]:
    """Return ER@k: how many users, of 1, have a target among their first k items.

    It is taken over the users who have not interacted with the target in training, and
    over all items that the user has not; equal scores are ranked at random, in the
    mean. Of several targets it is the mean.

    Parameters
    ----------
    model : FederatedRecommender
        With what clients hold.
    data : ClientData
        Of training.
    targets : Tensor of int64, shape (n_targets,)
        Items, from 0.
    topk : sequence of int
    """
    exposed = np.zeros((len(targets), len(topk)))
    n_users = np.zeros((len(targets), 1))
    for start in range(0, data.n_clients, USERS):
        users = np.arange(start, min(start + USERS, data.n_clients))
        scores = _unseen_scores(model, data, users)
        for place, target in enumerate(targets.tolist()):
            of_target = scores[np.isfinite(scores[:, target])]
            own = of_target[:, [target]]
            ahead = (of_target > own).sum(axis=1)
            equal = (of_target == own).sum(axis=1)
            n_users[place] += len(of_target)
            exposed[place] += [
                ((k - ahead) / equal).clip(0, 1).sum() for k in topk
            ]  # of those that share a place, so many stand above k
    shares = (exposed / np.maximum(n_users, 1)).mean(axis=0)
    return {f"er@{k}": float(share) for k, share in zip(topk, shares, strict=True)}


def _unseen_scores(
    model: FederatedRecommender, data: ClientData, users: Ints
) -> NDArray[np.float32]:
    """Return scores of all items, shape (n, n_items); -inf where seen in training."""
    batch = {model.USER_ID: torch.from_numpy(1 + users).to(model.device)}
    with torch.no_grad():
        scores = model.full_sort_predict(batch).view(len(users), -1)[:, 1:]
    values = scores.cpu().numpy().copy()
    for row, user in enumerate(users.tolist()):
        values[row, data.of(user)] = -np.inf
    return values
