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

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import best_of, file_of, read_checkpoint
from recbole_fedras.data.dataset import client_data
from recbole_fedras.data.digest import digest_of_dataset
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run.setup import prepare_data

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
    seen : ndarray of int64, shape (n_rows, 2)
        Numbers of users and items of all interactions, held-out ones too.
    """

    config: Config
    dataset: Any
    model: FederatedRecommender
    simulation: Simulation
    seen: NDArray[np.int64]

    def recommend(self, users: Sequence[str], k: int = 10) -> pd.DataFrame:
        """Return the best items for users, of those that they have not seen.

        Parameters
        ----------
        users : sequence of str
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
            If ``k`` is not positive.
        DataError
            That names a user who is not in the dataset.

        Examples
        --------
        >>> load_run("saved/MF-FedRAS-...").recommend(["196"], k=5)  # doctest: +SKIP
        """
        if k < 1:
            raise ConfigError(f"k={k} is not allowed; it must be at least 1")
        numbers = self._numbers_of(users)
        blocks = [
            self._best(numbers[start : start + _USERS_AT_A_TIME], k)
            for start in range(0, len(numbers), _USERS_AT_A_TIME)
        ]
        return pd.concat(blocks, ignore_index=True)

    def _numbers_of(self, users: Sequence[str]) -> NDArray[np.int64]:
        if not len(users):
            raise DataError("users=[] must name at least one")
        known = self.dataset.field2token_id[self.dataset.uid_field]
        for user in users:
            if user not in known or known[user] == 0:  # [PAD]
                raise DataError(
                    f"user {user!r} is not in dataset={self.dataset.dataset_name!r}, "
                    f"which has {len(known) - 1} users, as it is filtered in this run"
                )
        return np.array([known[user] for user in users], np.int64)

    @torch.no_grad()
    def _best(self, numbers: NDArray[np.int64], k: int) -> pd.DataFrame:
        self.model.eval()
        batch = {self.model.USER_ID: torch.from_numpy(numbers).to(self.model.device)}
        scores = self.model.full_sort_predict(batch).cpu().view(len(numbers), -1)
        scores[:, 0] = -torch.inf  # [PAD]
        rows, items = self._seen_by(numbers)
        scores[rows, items] = -torch.inf
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

    def _seen_by(
        self, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return places of users in ``numbers``, and the items that each has seen."""
        pairs = self.seen[np.isin(self.seen[:, 0], numbers)]
        places = pd.DataFrame({"user": numbers, "row": np.arange(len(numbers))})
        joined = places.merge(pd.DataFrame(pairs, columns=["user", "item"]), on="user")
        return joined["row"].to_numpy(), joined["item"].to_numpy()


def load_run(folder: str | Path, data_path: str | None = None) -> FinishedRun:
    """Take up a run from its folder, as its best round left it.

    Parameters
    ----------
    folder : str or Path
        The run's folder, or a checkpoint in it.
    data_path : str, optional
        Where the datasets are, if no longer where they were.

    Raises
    ------
    DataError
        If the folder is not of a run, or the dataset's files have changed.
    """
    path = best_of(file_of(folder))
    state = read_checkpoint(path)
    moved = {} if data_path is None else {"data_path": data_path}
    config = Config(config_dict=state["config"] | moved | {"resume": None})
    settings = config.run_settings()
    loaders = prepare_data(config)
    digest = digest_of_dataset(settings.data_path, settings.dataset)
    if state["data_digest"] not in (None, digest):
        raise DataError(
            f"{path} is of a run on other data: the files of dataset="
            f"{settings.dataset!r} at data_path={settings.data_path!r} are not those "
            "that it was trained on; give the data_path of these"
        )
    dataset = loaders[0]._dataset
    with config.in_use():
        model = config.make_model(dataset).to(settings.device)
        model.load_state_dict(state["state_dict"])
        simulation = Simulation(
            model,
            client_data(dataset),
            config.make_methods(),
            config.federation(),
            config.local_training(),
            settings.n_jobs,
            version=state["epoch"] + 1,
        )
        simulation.load_state_dict(state["simulation"])
    return FinishedRun(config, dataset, model, simulation, _pairs(loaders))


def _pairs(loaders: Sequence[Any]) -> NDArray[np.int64]:
    parts = [loader._dataset for loader in loaders]
    return np.concatenate(
        [
            np.stack(
                [
                    part.inter_feat[part.uid_field].numpy(),
                    part.inter_feat[part.iid_field].numpy(),
                ],
                axis=1,
            )
            for part in parts
        ]
    )
