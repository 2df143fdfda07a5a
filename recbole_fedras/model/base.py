"""What a federated model is: an ordinary RecBole model with one ``score``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_fedras.compressor.base import REAL
from recbole_fedras.data.local import TrainClients
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.errors import ConfigError
from recbole_fedras.model.settings import ModelConfig
from recbole_fedras.numeric.rng import Stream, counter_key, generator, normals
from recbole_fedras.numeric.theta import Theta, unflatten


class _Replicas(Protocol):
    @property
    def theta(self) -> Tensor: ...

    @property
    def tables(self) -> Tensor: ...

    @property
    def networks(self) -> Tensor | None: ...

    def table_of(self, clients: Sequence[int]) -> Tensor: ...


class Holdings(Protocol):
    """What a shard's clients hold, as far as scoring goes; clients count from 0."""

    @property
    def replicas(self) -> _Replicas:
        """Item tables and networks."""

    def user_rows_of(self, clients: NDArray[np.int64]) -> Tensor:
        """Private rows of clients, shape (n, dim)."""


class FederatedRecommender(GeneralRecommender):  # type: ignore[misc]
    """Embeddings of users (private) and items (shared), and a scoring network theta.

    It says how to score and what everybody starts with. In a federated run it is a view
    of what the clients of a shard hold (:meth:`look_at`): RecBole's evaluation,
    ``predict`` and ``full_sort_predict`` score with that. RecBole's own trainers train
    its parameters centrally.

    A subclass defines :meth:`score` and, if it has a network, adds modules: every
    parameter besides the two embeddings belongs to theta.

    Parameters
    ----------
    config : Config
    dataset : recbole.data.dataset.Dataset

    Attributes
    ----------
    user_embedding : nn.Embedding, shape (n_users, dim)
        Private. Row 0 is RecBole's [PAD].
    embedding : ItemEmbedding or None
        What items are made of; None: of a row each, as they are, and in a warm-up.
    item_embedding : nn.Embedding, shape (1 + n_rows, width)
        Shared: what everybody starts with. Row 0 is [PAD].

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from recbole_fedras import Config
    >>> class Near(FederatedRecommender):
    ...     def score(self, user_rows, item_rows, theta):
    ...         return -(user_rows - item_rows).square().sum(-1)
    >>> dataset = SimpleNamespace(num={"user_id": 3, "item_id": 5}.get, item_num=5)
    >>> model = Near(Config(), dataset)  # two users and four items, beside [PAD]
    >>> users, item = torch.tensor([1, 2]), model.item_table()[3]
    >>> logits = model.predict({"user_id": users, "item_id": torch.tensor([4, 4])})
    >>> bool(torch.allclose(logits, -(model.user_rows() - item).square().sum(-1)))
    True
    """

    input_type = InputType.POINTWISE

    #: Whether ``embedding_size`` may be cut without another key.
    resizable: bool = True

    #: What embeddings hold: compressor and aggregator must take such tables.
    table_values: ClassVar[str] = REAL

    #: Keys of which not every value goes with the model, and those that do.
    requires: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    #: Compiled local training on the CPU, or None: ``train_clients(parameters, samples,
    #: descent) -> losses`` trains a group's clients exactly as gradients of
    #: :meth:`score` would; see :mod:`recbole_fedras.data.local`.
    train_clients: TrainClients | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let nobody inherit compiled training of another score or network.

        A class that defines ``score`` or ``__init__`` anew, here or in a base that
        comes first, must itself say that ``train_clients`` still fits.
        """
        super().__init_subclass__(**kwargs)

        def depth(name: str) -> int:
            return [name in vars(base) for base in cls.__mro__].index(True)

        if min(depth("score"), depth("__init__")) < depth("train_clients"):
            cls.train_clients = None

    def __init__(self, config: ModelConfig, dataset: Any) -> None:
        super().__init__(config, dataset)
        settings = config.model_settings()
        self.label_field = settings.label_field
        self.dim, self.init_std = settings.dim, settings.init_std
        self.seed = settings.seed
        self._make_item_embedding = partial(
            config.make_item_embedding, self.n_items - 1, self.dim
        )
        self._shard: Holdings | None = None
        everybody = self.initial_users(np.arange(self.n_users - 1))
        self.user_embedding = _below_padding(everybody)
        self.embedding: ItemEmbedding | None = None
        self.begin(
            None if settings.warmup_rounds else config.item_embedding_of(dataset)
        )

    def initial_users(self, clients: NDArray[np.int64]) -> Tensor:
        """Draw private rows, shape (n, dim): each client's of its own number alone."""
        key = counter_key(self.seed, Stream.INITIALISATION, 0)
        values = normals(key, clients, self.dim) * self.init_std
        return torch.from_numpy(values).float()

    def initial_table(self) -> Tensor:
        """Draw the item table that everybody starts from, shape (n_items, width)."""
        rng = generator(self.seed, Stream.INITIALISATION, 1)
        if self.embedding is not None:
            return self.embedding.initial_table(rng, self.init_std)
        values = rng.standard_normal((self.n_items, self.dim)) * self.init_std
        return torch.from_numpy(values[1:]).float()

    def begin(self, embedding: ItemEmbedding | None) -> None:
        """Make items of an embedding, anew from its initial table, for everybody.

        Parameters
        ----------
        embedding : ItemEmbedding or None
            None: a row each, as they are.
        """
        if self.embedding is not None:
            for name in self.embedding.theta():
                delattr(self, name)
        self.embedding, self._shard = embedding, None
        self.item_embedding = _below_padding(self.initial_table())
        if embedding is None:
            return
        for name, value in embedding.theta().items():
            if hasattr(self, name):
                raise ConfigError(
                    f"item_embedding: its parameter {name!r} is one of the model"
                )
            self.register_parameter(name, nn.Parameter(value))

    def begin_like(self, state_dict: Mapping[str, Any]) -> None:
        """Make items of what a saved state has them of: before or after a warm-up."""
        self.begin_or_not("embedding.members" in state_dict)

    def begin_or_not(self, begun: bool) -> None:
        """Make items of an embedding, not fitted yet, or of rows, if they are not."""
        if begun != (self.embedding is not None):
            self.begin(self._make_item_embedding() if begun else None)

    @abstractmethod
    def score(self, user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        r"""Logits of user-item pairs.

        Parameters
        ----------
        user_rows : Tensor, shape (n_clients, 1 or n, dim)
        item_rows : Tensor, shape (n_clients or 1, n, dim)
        theta : mapping of str to Tensor
            The network of each client, shapes (n_clients or 1, \*shape).

        Returns
        -------
        Tensor, shape (n_clients, n)
        """

    def score_all(self, user_rows: Tensor, item_table: Tensor, theta: Theta) -> Tensor:
        """Logits of every user, (n_users, dim), with every item of one table."""
        return self.score(user_rows[:, None], item_table[None], theta)

    def _on_device(
        self, user_rows: Tensor, items: Tensor, theta: Theta
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        network = {name: value.to(self.device) for name, value in theta.items()}
        return user_rows.to(self.device), items.to(self.device), network

    # What federated training needs; ids count from 0, without [PAD].

    def user_rows(self) -> Tensor:
        """User embeddings without [PAD], shape (n_clients, dim); a view."""
        return self.user_embedding.weight.data[1:]

    def item_table(self) -> Tensor:
        """Item table without [PAD], shape (n_items, width); a view."""
        return self.item_embedding.weight.data[1:]

    def theta(self) -> dict[str, Tensor]:
        """Parameters of the scoring network, by name; views."""
        return {name: parameter.data for name, parameter in self._network()}

    def _network(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.named_parameters():
            if not name.startswith(("user_embedding.", "item_embedding.")):
                yield name, parameter

    def look_at(self, shard: Holdings) -> None:
        """Score with what a shard's clients hold, from now on."""
        self._shard = shard

    # What RecBole expects of a model.

    def copy_held(self) -> None:
        """Take what the first client of the shard holds for parameters."""
        if self._shard is None:
            return
        holdings = self._held(torch.ones(1, dtype=torch.int64))
        self.item_table().copy_(holdings.tables[holdings.table_of[0]])
        for name, value in self.theta().items():
            value.copy_(holdings.theta[name][0])

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return parameters, those that :meth:`copy_held` takes."""
        self.copy_held()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load parameters, of before or after a warm-up."""
        self.begin_like(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def _held(self, user: Tensor) -> _Held:
        """Return what users hold: of the shard looked at, or the parameters."""
        if self._shard is None:
            theta = {name: parameter[None] for name, parameter in self._network()}
            tables = self.item_embedding.weight[None, 1:]
            user = user.to(tables.device)
            table_of = torch.zeros_like(user)
            return _Held(self.user_embedding(user), tables, table_of, theta)
        clients = (user - 1).cpu().numpy()
        tables = self._shard.replicas.tables
        table_of = self._shard.replicas.table_of(clients.tolist())
        networks = self._shard.replicas.networks
        flat = self._shard.replicas.theta[None] if networks is None else networks
        if networks is not None:
            flat = networks[table_of]
        theta = unflatten(flat, self.theta())
        return _Held(self._shard.user_rows_of(clients), tables, table_of, theta)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Logits of pairs: users (n,) with items (n,) or with candidates (n, m)."""
        holdings = self._held(user)
        # Nobody asks for [PAD]. What clients hold need not be where scores are made.
        items = (item - 1).clamp(min=0).to(holdings.tables.device)
        one_network = all(len(value) == 1 for value in holdings.theta.values())
        if item.dim() == 2:
            rows = self._vectors(items, holdings, holdings.table_of[:, None])
            return self.score(
                *self._on_device(holdings.user_rows[:, None], rows, holdings.theta)
            )
        if one_network:
            rows = self._vectors(items[None], holdings, holdings.table_of[None])
            return self.score(
                *self._on_device(holdings.user_rows[None], rows, holdings.theta)
            )[0]
        rows = self._vectors(items[:, None], holdings, holdings.table_of[:, None])
        return self.score(
            *self._on_device(holdings.user_rows[:, None], rows, holdings.theta)
        )[:, 0]

    def _vectors(self, items: Tensor, holdings: _Held, table_of: Tensor) -> Tensor:
        """Vectors of items (n_clients, n) as tables (broadcast to that) have them."""
        if self.embedding is None:
            return holdings.tables[table_of, items]
        members = self.embedding.members[items]
        parts = holdings.tables[table_of[..., None], members]
        return self.embedding.vectors(parts, items, holdings.theta)

    def _all_vectors(self, holdings: _Held, index: int) -> Tensor:
        """Vectors of all items as one of the tables has them, (n_items, dim)."""
        if self.embedding is None:
            return holdings.tables[index]
        everything = torch.arange(self.n_items - 1, device=holdings.tables.device)
        table_of = torch.full_like(everything, index)
        return self._vectors(everything[None], holdings, table_of[None])[0]

    def item_vectors(self) -> Tensor:
        """Vectors of all items as the first client has them, (n_items, dim)."""
        holdings = self._held(torch.ones(1, dtype=torch.int64))
        return self._all_vectors(holdings, int(holdings.table_of[0]))

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Mean binary cross-entropy, for central training by RecBole's Trainer."""
        logits = self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])
        return nn.functional.binary_cross_entropy_with_logits(
            logits, interaction[self.label_field]
        )

    def predict(self, interaction: Any) -> Tensor:
        """Logits of the pairs of a batch, shape (n,)."""
        return self.forward(interaction[self.USER_ID], interaction[self.ITEM_ID])

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Logits of a batch's users with all items, shape (n * n_items,)."""
        holdings = self._held(interaction[self.USER_ID])
        size = len(holdings.user_rows), self.n_items
        scores = torch.zeros(size, device=self.device)
        for index in sorted(set(holdings.table_of.tolist())):
            users = (holdings.table_of == index).nonzero().flatten()
            theta = {
                name: value if len(value) == 1 else value[users][:1]
                for name, value in holdings.theta.items()
            }
            table = self._all_vectors(holdings._replace(theta=theta), index)
            held = self._on_device(holdings.user_rows[users], table, theta)
            scores[users.to(self.device), 1:] = self.score_all(*held)
        return scores.flatten()


class _Held(NamedTuple):
    """What some users hold: rows (n, dim), tables, which of them, networks by name."""

    user_rows: Tensor
    tables: Tensor
    table_of: Tensor
    theta: dict[str, Tensor]


def _below_padding(rows: Tensor) -> nn.Embedding:
    """Return an embedding of rows, behind RecBole's [PAD]."""
    weight = torch.cat([torch.zeros(1, rows.shape[1]), rows])
    n_rows, width = weight.shape
    return nn.Embedding(n_rows, width, _weight=weight)
