"""A finished run taken up again: its model, and what it recommends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import best_of, file_of
from recbole_fedras.data.dataset import FederatedDataset, client_data
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run.setup import data_digest, prepare_data, restore

_USERS_AT_A_TIME = 256


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

    def recommend(self, users: Sequence[str | int], k: int = 10) -> pd.DataFrame:
        """Return the best items for users, of those that they have not seen.

        Parameters
        ----------
        users : sequence of str or int
            Their ids, as the dataset's file has them.
        k : int
            Items for each; fewer where a user has seen nearly all.

        Returns
        -------
        DataFrame
            ``user``, ``item`` (ids) and ``score`` (logit), best first.

        Raises
        ------
        ConfigError
            If ``k`` is not a positive integer, or ``users`` is one string.
        DataError
            That names a user who is not in the dataset.

        Examples
        --------
        >>> load_run("saved/MF-FedRAS-...").recommend(["196"], k=5)  # doctest: +SKIP
        """
        if not isinstance(k, int) or k < 1:
            raise ConfigError(f"k={k!r} is not allowed; it must be an integer from 1")
        if isinstance(users, str):
            raise ConfigError(f"users={users!r} is not allowed; it must be a list")
        numbers = self._numbers_of(users)
        blocks = [
            self._best(numbers[start : start + _USERS_AT_A_TIME], k)
            for start in range(0, len(numbers), _USERS_AT_A_TIME)
        ]
        return pd.concat(blocks, ignore_index=True)

    def _numbers_of(self, users: Sequence[str | int]) -> NDArray[np.int64]:
        if not len(users):
            raise DataError("users=[] must name at least one")
        known = self.dataset.field2token_id[self.dataset.uid_field]
        names = [str(user) for user in users]
        for user in names:
            if not known.get(user):  # 0: [PAD]
                raise DataError(
                    f"user {user!r} is not in dataset={self.dataset.dataset_name!r}, "
                    f"which has {len(known) - 1} users, as it is filtered in this run"
                )
        return np.array([known[name] for name in names], np.int64)

    @torch.no_grad()
    def _best(self, numbers: NDArray[np.int64], k: int) -> pd.DataFrame:
        self.model.eval()
        batch = {self.model.USER_ID: torch.from_numpy(numbers).to(self.model.device)}
        scores = self.model.full_sort_predict(batch).cpu().view(len(numbers), -1)
        scores[:, 0] = -torch.inf  # [PAD]
        scores[self.seen[numbers].nonzero()] = -torch.inf
        best = scores.sort(dim=1, descending=True, stable=True)
        values, chosen = best.values[:, :k].numpy(), best.indices[:, :k].numpy()
        user, place = np.nonzero(np.isfinite(values))
        name = self.dataset.id2token
        return pd.DataFrame(
            {
                "user": name(self.dataset.uid_field, numbers[user]),
                "item": name(self.dataset.iid_field, chosen[user, place]),
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
        model = config.make_model(train).to(config.run_settings().device)
        clients, digest = client_data(train), data_digest(config)
        simulation, _ = restore(config, model, clients, path, digest)
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
