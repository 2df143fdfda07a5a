"""Evaluation in parts: sums over some users, which add up to the means over all."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import fsum
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator
from torch import Tensor

from recbole_fedras.config import Config
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run.evaluation import FairCollector, candidate_scores


def evaluate(
    config: Config, model: FederatedRecommender, loader: Any
) -> dict[str, Any]:
    """Evaluate the users of a loader.

    Parameters
    ----------
    config : Config
        Its metrics are means over users, lists of a length each (``TopkMetric``).
    model : FederatedRecommender
    loader : FixedCandidates or FullSortEvalDataLoader

    Returns
    -------
    dict
        ``n_users``, and ``sums`` by metric; ``users`` and ``ranks``, which go no
        further than to whoever may know them.
    """
    collector = FairCollector(config)
    for scores, *of_batch in _batches(model, loader):
        collector.eval_batch_collect(scores, *of_batch)
    inter = loader._dataset.inter_feat
    users = np.unique(inter[loader._dataset.uid_field].numpy())
    if not len(users):
        return {"n_users": 0, "sums": {}, "users": users, "ranks": users}
    sums = _sums(config, collector.get_data_struct())
    found = {"n_users": len(users), "sums": sums}
    return found | {"users": users, "ranks": collector.ranks}


def _sums(config: Config, collected: Any) -> dict[str, float]:
    sums: dict[str, float] = {}
    for metric in Evaluator(config).metric_class.values():
        metric.topk_result = lambda name, values, own=metric: {
            f"{name}@{k}": fsum(values[:, k - 1].tolist()) for k in own.topk
        }
        sums |= metric.calculate_metric(collected)
    return sums


def metric_names(config: Config) -> frozenset[str]:
    """Return the names that :func:`evaluate` gives sums, as of one user made up."""
    collector = FairCollector(config)
    n_items = max(config.evaluation_settings().topk) + 1
    user = Interaction({config.evaluation_settings().user_field: torch.ones(1)})
    places = torch.zeros(1, dtype=torch.int64)
    collector.eval_batch_collect(torch.zeros(1, n_items), user, places, places)
    return frozenset(_sums(config, collector.get_data_struct()))


def _batches(
    model: FederatedRecommender, loader: Any
) -> Iterator[tuple[Tensor, Any, Tensor, Tensor]]:
    """Yield scores, as RecBole's trainer makes them, and what goes with them."""
    for interaction, history, positive_u, positive_i in loader:
        if isinstance(loader, FullSortEvalDataLoader):
            scores = model.full_sort_predict(interaction.to(model.device))
            scores = scores.view(-1, model.n_items)
            scores[:, 0] = -torch.inf  # [PAD]
            if history is not None:
                scores[history] = -torch.inf
        else:
            scores = candidate_scores(model, interaction)
        yield scores, interaction, positive_u, positive_i


def means(parts: Collection[dict[str, Any]], decimals: int) -> dict[str, float]:
    """Return the means over all users of what :func:`evaluate` found of some.

    Examples
    --------
    >>> parts = [{"n_users": 1, "sums": {"hit@1": 1.0}}, {"n_users": 0, "sums": {}}]
    >>> means([*parts, {"n_users": 2, "sums": {"hit@1": 0.0}}], decimals=4)
    {'hit@1': 0.3333}
    """
    known = [part for part in parts if part["n_users"]]
    n_users = sum(part["n_users"] for part in known)
    return {
        metric: round(fsum(part["sums"][metric] for part in known) / n_users, decimals)
        for metric in (known[0]["sums"] if known else ())
    }
