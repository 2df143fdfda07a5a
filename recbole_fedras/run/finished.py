"""A finished run taken up again: its model, and what it recommends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import best_of, file_of
from recbole_fedras.data.dataset import FederatedDataset
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run.item_vectors import write_item_vectors
from recbole_fedras.run.setup import data_digest, prepare_data, restore, simulated

_USERS_AT_A_TIME = 256

#: Rows and columns of a matrix.
Places = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class FinishedRun:
    """A run as its best round left it.

    Attributes
    ----------
    config : Config
    dataset : recbole.data.dataset.Dataset
        The training part; it knows tokens of users and items.
    model : FederatedRecommender
        Scores with what the clients hold.
    simulation : Simulation
        Server and clients; ``run_round`` goes on from there.
    seen : csr_matrix, shape (user_num, item_num)
        How often a user has interacted with an item, in all rows of the files: held-out
        ones, and those that filters leave out, too.
    """

    config: Config
    dataset: Any
    model: FederatedRecommender
    simulation: Simulation
    seen: csr_matrix

    def recommend(
        self, users: Sequence[str | int | Sequence[str | int]], k: int = 10
    ) -> pd.DataFrame:
        """Return the best items for users, of those that they have not seen.

        Parameters
        ----------
        users : sequence
            Of each the id, as the dataset has it, or, of someone who is not in it, a
            list of items, ids too. A vector is found for these users by local training
            on their items as clients train, with the run's keys and seed and as often
            as its clients did on average, while items and network stay as they are.
            Nobody else's result depends on it.
        k : int
            Items for each; fewer where a user has seen nearly all.

        Returns
        -------
        DataFrame
            ``user``, ``item`` (ids) and ``score`` (logit), best first. Users without an
            id are called ``new 1``, ``new 2``, ...

        Raises
        ------
        ConfigError
            If ``k`` is not a positive integer, or ``users`` is one string.
        DataError
            That names a user or an item that is not in the dataset.

        Examples
        --------
        >>> run = load_run("saved/MF-FedRAS-...")  # doctest: +SKIP
        >>> run.recommend(["196", ["12", "50", "181"]], k=5)  # doctest: +SKIP
        """
        if not isinstance(k, int) or k < 1:
            raise ConfigError(f"k={k!r} is not allowed; it must be an integer from 1")
        if isinstance(users, str):
            raise ConfigError(f"users={users!r} is not allowed; it must be a list")
        if not len(users):
            raise DataError("users=[] must name at least one")
        names, blocks = count(1), []
        for known, same in groupby(users, np.isscalar):
            part: list[Any] = list(same)
            for start in range(0, len(part), _USERS_AT_A_TIME):
                some = part[start : start + _USERS_AT_A_TIME]
                if known:
                    numbers = self._numbers_of("user", self.dataset.uid_field, some)
                    seen = self.seen[numbers].nonzero()
                    best = self._best(some, self._scores(numbers), seen, k)
                else:
                    called = [f"new {next(names)}" for _ in some]
                    best = self._best(called, *self._scores_of_new(some), k)
                blocks.append(best)
        return pd.concat(blocks, ignore_index=True)

    @torch.no_grad()
    def item_vectors(self, path: str | Path | None = None) -> pd.DataFrame:
        """Return the vectors of all items, as new users are given them.

        They are what the model scores with: of MF the product with a user's is the
        score, of others something is made of it first.

        Parameters
        ----------
        path : str or Path, optional
            File to write as well: ``.npz`` with ``tokens`` and ``vectors``, or ``.txt``
            in the text format of word2vec.

        Returns
        -------
        DataFrame of float32, shape (n_items, dim)
            Its index has the items' ids.

        Examples
        --------
        >>> vectors = load_run("saved/...").item_vectors("items.npz")  # doctest: +SKIP
        """
        with self._looking_at(self.simulation.shard.user_rows[:1]):
            vectors = self.model.item_vectors().cpu().numpy().copy()
        field, n_items = self.dataset.iid_field, self.dataset.item_num
        tokens = self.dataset.id2token(field, np.arange(1, n_items)).tolist()
        if path is not None:
            write_item_vectors(path, tokens, vectors)
        return pd.DataFrame(vectors, index=pd.Index(tokens, name="item"))

    def _numbers_of(
        self, what: str, field: str, tokens: Iterable[str | int]
    ) -> NDArray[np.int64]:
        known, names = self.dataset.field2token_id[field], list(map(str, tokens))
        for name in names:
            if not known.get(name):  # 0: [PAD]
                raise DataError(
                    f"{what} {name!r} is not in dataset={self.dataset.dataset_name!r}, "
                    f"which has {len(known) - 1} {what}s, as it is filtered in this run"
                )
        return np.array([known[name] for name in names], np.int64)

    @torch.no_grad()
    def _scores(self, numbers: NDArray[np.int64]) -> Tensor:
        self.model.eval()
        batch = {self.model.USER_ID: torch.from_numpy(numbers).to(self.model.device)}
        scores: Tensor = self.model.full_sort_predict(batch).cpu()
        return scores.view(len(numbers), -1)

    def _scores_of_new(self, users: Sequence[Any]) -> tuple[Tensor, Places]:
        """Return scores of users given by their items, and where these are."""
        model, simulation = self.model, self.simulation
        first = model.initial_users(np.array([model.n_users - 1]))
        histories = [self._history(items) for items in users]
        rows = [simulation.train_newcomer(first, items - 1) for items in histories]
        with self._looking_at(torch.cat(rows)):
            scores = self._scores(np.arange(1, len(rows) + 1))
        who = np.repeat(np.arange(len(rows)), list(map(len, histories)))
        return scores, (who, np.concatenate(histories))

    @contextmanager
    def _looking_at(self, user_rows: Tensor) -> Iterator[None]:
        """Let the model score for users who are new, and who have these rows."""
        self.model.look_at(self.simulation.newcomers(user_rows))
        try:
            yield
        finally:
            self.model.look_at(self.simulation.shard)

    def _history(self, items: Iterable[str | int]) -> NDArray[np.int64]:
        numbers = np.unique(self._numbers_of("item", self.dataset.iid_field, items))
        n_items = self.dataset.item_num - 1
        if not 0 < len(numbers) < n_items:
            raise DataError(
                f"a new user has {len(numbers)} items; it must be from 1 to "
                f"{n_items - 1}, so that there is something to learn from and to find"
            )
        return numbers

    def _best(
        self, users: Sequence[Any], scores: Tensor, seen: Places, k: int
    ) -> pd.DataFrame:
        scores[:, 0] = -torch.inf  # [PAD]
        scores[seen] = -torch.inf
        best = scores.sort(dim=1, descending=True, stable=True)
        values, chosen = best.values[:, :k].numpy(), best.indices[:, :k].numpy()
        user, place = np.nonzero(np.isfinite(values))
        items = self.dataset.id2token(self.dataset.iid_field, chosen[user, place])
        return pd.DataFrame(
            {
                "user": np.array(list(map(str, users)))[user],
                "item": items,
                "score": values[user, place],
            }
        )


def load_run(
    folder: str | Path,
    data_path: str | None = None,
    dataset: pd.DataFrame | None = None,
) -> FinishedRun:
    """Take up a run from its folder, as its best round left it.

    Parameters
    ----------
    folder : str or Path
        The run's folder, or a checkpoint in it.
    data_path : str, optional
        Where the datasets are, if no longer where they were.
    dataset : DataFrame, optional
        What the run was started with, if it was a DataFrame.

    Raises
    ------
    DataError
        If the folder is not of a run, or the dataset has changed.
    """
    path = best_of(file_of(folder))
    moved = {} if data_path is None else {"data_path": data_path}
    config = Config(dataset=dataset, config_dict=moved | {"resume": str(path)})
    loaders = prepare_data(config)
    train = loaders[0]._dataset
    with config.in_use():
        model = config.make_model(train)
        digest = data_digest(config)
        make = simulated(config, loaders[0])
        simulation, _ = restore(config, model, make, path, digest)
        if config.data_settings().filters:
            seen = _seen_in_file(config, train)
        else:
            seen = sum(loader._dataset.inter_matrix("csr") for loader in loaders)
    return FinishedRun(config, train, model, simulation, seen)


def _seen_in_file(config: Config, dataset: Any) -> csr_matrix:
    """Return what users have seen in rows that no filter has left out."""
    unfiltered = dict.fromkeys(config.data_settings().filters)
    keys = config.resolved | unfiltered
    whole = FederatedDataset(Config(dataset=config.frame, config_dict=keys))
    places = []
    for field in (dataset.uid_field, dataset.iid_field):
        known, tokens = dataset.field2token_id[field], whole.field2id_token[field]
        numbers = np.array([known.get(token, 0) for token in tokens])  # 0: [PAD]
        places.append(numbers[whole.inter_feat[field]])
    shape = dataset.user_num, dataset.item_num
    return csr_matrix((np.ones(len(places[0])), places), shape)
