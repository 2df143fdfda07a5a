"""Evaluation: candidates drawn once, ties broken without favour, finite scores only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from torch import Tensor
from torch.nn.functional import pad

from recbole_fedras.config import Config
from recbole_fedras.config.settings import EvaluationSettings
from recbole_fedras.errors import NonFiniteError
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.run.negatives import DrawnNegatives, ListedNegatives, Negatives


class FixedCandidates:
    """Each user's held-out items among sampled ones, the same at every evaluation.

    Held-out items stand at random places among the candidates, so that ties favour
    neither side: the expected metric is that of random tie-breaking.

    Stands in for RecBole's ``NegSampleEvalDataLoader``, which draws anew, with
    replacement and from the global generator, at every evaluation, and lets test items
    be negatives in validation.

    Parameters
    ----------
    dataset : recbole.data.dataset.Dataset
        The held-out part.
    negatives : Negatives
        The others, of each user.
    seed : int
    phase : {'valid', 'test'}
    batch_size : int
        Scores computed at a time.
    """

    def __init__(
        self,
        dataset: Any,
        negatives: Negatives,
        seed: int,
        phase: str,
        batch_size: int,
    ) -> None:
        self._dataset = dataset
        self._user_field, self._item_field = dataset.uid_field, dataset.iid_field
        users = dataset.inter_feat[self._user_field].numpy()
        items = dataset.inter_feat[self._item_field].numpy()
        self._users = np.unique(users)
        order = np.lexsort((items, users))
        bounds = np.searchsorted(users[order], self._users)
        held_out = np.split(items[order], bounds)[1:]
        rows, positives = [], []
        for user, items_of_user in zip(self._users, held_out, strict=True):
            items_of_user = np.unique(items_of_user)
            rng = generator(seed, Stream.CANDIDATES, phase == "test", user)
            others = negatives(int(user), len(items_of_user), rng)
            candidates = np.concatenate([items_of_user, others])
            place = rng.permutation(len(candidates))
            row = np.empty_like(candidates)
            row[place] = candidates
            rows.append(row)
            positives.append(place[: len(items_of_user)])
        self._width = max(map(len, rows), default=0)
        self._width = max(self._width, 1 + negatives.size)
        self._candidates = torch.zeros(len(rows), self._width, dtype=torch.int64)
        for index, row in enumerate(rows):  # [PAD] fills up
            self._candidates[index, : len(row)] = torch.from_numpy(row)
        self._positives = positives
        self._step = max(batch_size // self._width, 1)

    def __len__(self) -> int:
        return -(-len(self._users) // self._step)

    def __iter__(self) -> Iterator[tuple[Interaction, None, Tensor, Tensor]]:
        """Yield what RecBole's loader does; positives are columns of the candidates."""
        for start in range(0, len(self._users), self._step):
            batch = slice(start, start + self._step)
            interaction = Interaction(
                {
                    self._user_field: torch.from_numpy(self._users[batch]),
                    self._item_field: self._candidates[batch],
                }
            )
            counts = [len(columns) for columns in self._positives[batch]]
            positive_u = np.repeat(np.arange(len(counts)), counts)
            positive_i = np.concatenate(self._positives[batch])
            yield (
                interaction,
                None,
                torch.from_numpy(positive_u),
                torch.from_numpy(positive_i),
            )


def fixed_candidates(
    loader: Any, phase: str, built: list[Any], settings: EvaluationSettings
) -> Any:
    """Replace a RecBole evaluation loader, if it ranks among samples, by ours.

    Parameters
    ----------
    loader : AbstractDataLoader
        RecBole's, returned as it is for other modes and for
        ``eval_candidates: recbole``.
    phase : {'valid', 'test'}
    built : list of recbole.data.dataset.Dataset
        The training, validation and test parts.
    settings : EvaluationSettings
    """
    mode = settings.mode[phase]
    if settings.candidates == "recbole" or mode[:3] != "uni":
        return loader
    dataset = loader._dataset
    users = np.concatenate([part.inter_feat[part.uid_field] for part in built])
    items = np.concatenate([part.inter_feat[part.iid_field] for part in built])
    order = np.argsort(users, kind="stable")
    bounds = np.searchsorted(users[order], np.arange(1, dataset.user_num))
    interacted = list(map(np.unique, np.split(items[order], bounds)))
    size = int(mode[3:])
    negatives: Negatives = DrawnNegatives(dataset, interacted, size)
    file = settings.negative_file(phase)
    if file is not None:
        encoding = settings.encoding
        negatives = ListedNegatives(dataset, interacted, size, file, encoding)
    return FixedCandidates(
        dataset, negatives, settings.seed, phase, settings.batch_size
    )


def candidate_scores(model: Any, interaction: Interaction) -> Tensor:
    """Score the candidates of a batch of users; -inf where there is none."""
    scores: Tensor = model.predict(interaction.to(model.device))
    none = interaction[model.ITEM_ID].to(scores.device) == 0  # [PAD]
    return scores.masked_fill(none, -torch.inf)


class FairCollector(Collector):  # type: ignore[misc]
    """RecBole's collector, indifferent to item ids and strict about scores.

    Full rankings are taken over a fixed random order of the items, as ``topk`` favours
    one end of its input among equal scores. A score that is not finite is an error,
    where RecBole would rank it.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        settings = config.evaluation_settings()
        self._seed = settings.seed
        self._user_field = settings.user_field
        self._item_field = settings.item_field
        #: Of the last evaluation, for each user the place of their first held-out item
        #: among the first max(topk), from 1; 0 if it is not there. None where no
        #: metric counts hits.
        self.ranks: NDArray[np.int64] | None = None

    def eval_batch_collect(
        self,
        scores_tensor: Tensor,
        interaction: Interaction,
        positive_u: Tensor,
        positive_i: Tensor,
    ) -> None:
        """Collect a batch; -inf marks what is not to be ranked."""
        if bool((scores_tensor.isnan() | (scores_tensor == torch.inf)).any()):
            raise NonFiniteError("evaluation: a score is not finite")
        if self._is_candidate_batch(interaction):
            columns = interaction[self._item_field].to(scores_tensor.device)
        else:
            n_items = scores_tensor.shape[1]
            order = generator(self._seed, Stream.TIES, n_items).permutation(n_items)
            shuffled = torch.from_numpy(order).to(scores_tensor.device)
            place = torch.empty_like(shuffled)
            place[shuffled] = torch.arange(n_items, device=place.device)
            scores_tensor = scores_tensor[:, shuffled]
            positive_i = place[positive_i.to(place.device)]
            columns = shuffled.expand(len(scores_tensor), -1)
        if self.register.need("rec.meanrank"):  # GAUC: the first -inf ends a ranking
            scores_tensor = pad(scores_tensor, (0, 1), value=-torch.inf)
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if self.register.need("rec.items"):
            ranked = self.data_struct.get("rec.items")[-len(columns) :]
            ranked.copy_(columns.gather(1, ranked))

    def get_data_struct(self) -> Any:
        """Return what was collected; RecBole fails on what is not a tensor."""
        counts = {
            key: value
            for key, value in self.data_struct._data_dict.items()
            if not isinstance(value, Tensor)
        }
        for key in counts:
            del self.data_struct._data_dict[key]
        collected = super().get_data_struct()
        for key, value in counts.items():
            self.data_struct.set(key, value)
            collected.set(key, value)
        self.ranks = None
        if self.register.need("rec.topk"):
            hits = collected.get("rec.topk")[:, :-1].numpy()  # the last column counts
            self.ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
        return collected

    def _is_candidate_batch(self, interaction: Interaction) -> bool:
        fields = interaction.columns
        return self._item_field in fields and interaction[self._item_field].dim() == 2
