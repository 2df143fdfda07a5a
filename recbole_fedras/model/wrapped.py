"""Models of RecBole's own, federated without a copy of their code."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NoReturn
from weakref import WeakKeyDictionary

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import BPR, NeuMF
from torch import Tensor, nn
from torch.func import functional_call, vmap

from recbole_fedras.errors import ConfigError
from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.model.settings import ModelConfig
from recbole_fedras.numeric.theta import Theta

#: Copies of networks, which a thread has for itself.
_threads = threading.local()


def _logits(made: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Return logits (n,) of what a recommender's ``forward`` returns of n pairs."""
    if isinstance(made, tuple):
        user, item = made
        return (user * item).sum(-1)
    return made.flatten()


class Rows(nn.Module):
    """Stands where an embedding stood, and returns the rows that it was given."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.empty(0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows, one for each id."""
        return self.rows


class WrappedRecommender(FederatedRecommender):
    """A general recommender of RecBole's, which scores with its own ``forward``.

    Its embeddings of users become the private rows, side by side if there are several,
    those of items the shared rows; every other parameter belongs to theta. A subclass
    names it: ``recommender = BPR``.

    ``forward(user, item)`` must return a logit for each pair, or embeddings of both
    whose product is one, and look up nothing but the embeddings of these.

    Parameters
    ----------
    config, dataset
        As for the base class; also reads what the recommender reads.

    Raises
    ------
    ConfigError
        If it cannot be built or federated: its ``forward`` takes or looks up something
        else, it has buffers (graphs, statistics of batches) or parameters of each user
        beside embeddings, or its embeddings do not add up to ``embedding_size``.

    Notes
    -----
    **Departures**: embeddings start as those of every model here (``init_std``), and
    the loss is ``local_loss``; there is no dropout.
    """

    recommender: ClassVar[type[GeneralRecommender]]

    def __init__(self, config: ModelConfig, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.network = self._build(config, dataset)
        self._sizes: dict[str, dict[str, int]] = {}
        user, item = torch.arange(1, self.n_users), torch.arange(1, self.n_items)
        pairs = torch.cartesian_prod(user[:3], item[:3]).T
        with torch.no_grad():
            try:
                expected = _logits(self.network(*pairs))
            except Exception as error:  # whatever its own code raises
                self._refuse(f"its forward fails on pairs: {error!r}", error)
            tables = {
                "user": self._take_embeddings("user", self.n_users),
                "item": self._take_embeddings("item", self.n_items),
            }
            self._refuse_what_is_not_shared()
            self._refuse_other_scores(pairs, expected, tables)

    def _refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        name = self.recommender.__name__
        raise ConfigError(f"{name} cannot be federated: {reason}") from cause

    def _build(self, config: ModelConfig, dataset: Any) -> nn.Module:
        """Build the recommender, with numbers of the run's seed."""
        arguments = list(inspect.signature(self.recommender.forward).parameters)
        if arguments[1:] != ["user", "item"]:
            self._refuse(f"its forward takes {arguments[1:]}, not user and item")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                network: nn.Module = self.recommender(config, dataset)
            except Exception as error:  # whatever its own code raises
                name = self.recommender.__name__
                raise ConfigError(f"{name} cannot be built: {error!r}") from error
        return network.eval()

    def _refuse_what_is_not_shared(self) -> None:
        for key, value in self.network.named_buffers():
            if value.numel():
                self._refuse(f"it has a buffer {key!r}")
        for key, value in self.network.named_parameters():
            if self.n_users in value.shape:
                self._refuse(
                    f"its parameter {key!r} has a dimension of {self.n_users}, the "
                    "number of users"
                )

    def _refuse_other_scores(
        self, pairs: Tensor, expected: Tensor, tables: dict[str, dict[str, Tensor]]
    ) -> None:
        """Refuse a ``forward`` that looks up more than the embeddings of a pair."""
        users, items = (
            torch.cat([table[ids] for table in tables[side].values()], dim=1)
            for side, ids in zip(tables, pairs, strict=True)
        )
        theta = {key: value.data[None] for key, value in self._network()}
        found = self.score(users[None], items[None], theta)[0]
        if not (found - expected).norm() <= 1e-3 * expected.norm():
            self._refuse("its forward looks up more than the embeddings of a pair")

    def _take_embeddings(self, side: str, count: int) -> dict[str, Tensor]:
        """Put :class:`Rows` in the embeddings' places; return them by name."""
        found = {
            name: module.weight.data
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Embedding)
            and module.num_embeddings == count
            and (self.n_users != self.n_items or side in name)
        }
        if not found:
            self._refuse(f"it has no embeddings of {side}s")
        self._sizes[side] = {key: table.shape[1] for key, table in found.items()}
        size = sum(self._sizes[side].values())
        if size != self.dim:
            raise ConfigError(
                f"embedding_size={self.dim} is not allowed; it must be {size}, the "
                f"{side} embeddings of {self.recommender.__name__} together"
            )
        for name in found:
            self.network.set_submodule(name, Rows())
        return found

    def _skeleton(self) -> nn.Module:
        """Return the network's copy of this thread: calling it swaps its parameters."""
        if not hasattr(_threads, "networks"):
            _threads.networks = WeakKeyDictionary()
        if self not in _threads.networks:
            _threads.networks[self] = copy.deepcopy(self.network)
        skeleton: nn.Module = _threads.networks[self]
        return skeleton

    def _parts(self, side: str, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
        sizes = self._sizes[side]
        parts = torch.split(rows, list(sizes.values()), dim=-1)
        for name, part in zip(sizes, parts, strict=True):
            yield f"{name}.rows", part

    def score(self, user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        """Return what the recommender's ``forward`` makes of the rows."""
        network = self._skeleton()

        def score_one(user: Tensor, items: Tensor, *own: Tensor) -> Tensor:
            ids = torch.zeros(len(items), dtype=torch.int64, device=items.device)
            names = (name.removeprefix("network.") for name in theta)
            given = dict(zip(names, own, strict=True))
            given |= dict(self._parts("user", user.expand(len(items), -1)))
            given |= dict(self._parts("item", items))
            return _logits(functional_call(network, given, (ids, ids)))

        values = [user_rows, item_rows, *theta.values()]
        one = [len(value) == 1 for value in values]
        values = [
            value[0] if alone else value
            for value, alone in zip(values, one, strict=True)
        ]
        if all(one):
            return score_one(*values)[None]
        mapped = tuple(None if alone else 0 for alone in one)
        logits: Tensor = vmap(score_one, in_dims=mapped)(*values)
        return logits


class FedBPR(WrappedRecommender):
    """RecBole's BPR: the dot product of user and item, for ``local_loss: bpr``."""

    recommender = BPR


class FedNeuMF(WrappedRecommender):
    """RecBole's NeuMF: GMF and an MLP, each on embeddings of its own."""

    recommender = NeuMF
    resizable = False
    requires: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "mf_train": (True,), "mlp_train": (True,), "use_pretrain": (False,),
        "dropout_prob": (0,),
    }  # fmt: skip
