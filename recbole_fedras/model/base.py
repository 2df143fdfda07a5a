"""What a federated model is: an ordinary RecBole model with one ``score``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.numeric.memory import leading, mapped_zeros
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.numeric.theta import Theta, unflatten


class FederatedRecommender(GeneralRecommender):  # type: ignore[misc]
    """Embeddings of users (private) and items (shared), and a scoring network theta.

    Its parameters are what *clients* hold: user embeddings never leave them, the item
    embedding is their replica, theta is the network that they received last. RecBole's
    trainers, evaluation and ``full_sort_predict`` work on it unchanged.

    A subclass defines :meth:`score` and, if it has a network, adds modules: every
    parameter besides the two embeddings belongs to theta.

    Parameters
    ----------
    config : recbole_fedras.config.merge.Config
        Reads ``embedding_size``, ``init_std`` and ``seed``; makes the item embedding.
    dataset : recbole.data.dataset.Dataset

    Attributes
    ----------
    user_embedding : nn.Embedding, shape (n_users, dim)
        Private. Row 0 is RecBole's [PAD].
    embedding : ItemEmbedding or None
        What items are made of; None: of a row each, as they are, and in a warm-up.
    item_embedding : nn.Embedding, shape (n_replicas * n_rows, width)
        Shared. Replica t is the block of rows from ``t * n_rows``; there is one where
        all clients hold the same (:meth:`hold_replicas`).
    networks : Tensor or None, shape (n_replicas, n_theta)
        Flattened network that goes with each replica; None if one serves all.
    """

    input_type = InputType.POINTWISE

    embedding: ItemEmbedding | None

    #: Whether ``embedding_size`` may be cut without another key.
    resizable: bool = True

    #: Whether embeddings are codes of -1 and 1, which only ``train_clients`` can train.
    binary: bool = False

    #: Compiled local training on the CPU, or None: ``train_clients(users, table, theta,
    #: changes, theta_changes, ids, row_offsets, rows, labels, sample_offsets, n_epochs,
    #: batch_size, learning_rate, user_learning_rate, theta_learning_rate, gradient_map,
    #: rho_shared, rho_private, pairwise, upload_gradient) -> loss`` updates ``users``
    #: (n_clients, dim) in place and writes by how much the clients' copies change, of
    #: the rows ``ids`` of ``table`` to ``changes`` (n_rows, dim), of the flattened
    #: network ``theta`` to ``theta_changes`` (n_clients, n_theta), exactly as gradients
    #: of :meth:`score` would. The samples are those of
    #: :class:`recbole_fedras.data.clients.Samples`; an empty ``gradient_map`` means
    #: none; the rest is :class:`recbole_fedras.federation.settings.LocalTraining`.
    train_clients: Callable[..., float] | None = None

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

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        if self.binary and self.train_clients is None:
            raise ValueError(
                f"model={type(self).__name__!r}: codes need train_clients of their own"
            )
        self.label_field = config["LABEL_FIELD"]
        self.dim: int = config["embedding_size"]
        self.init_std: float = config["init_std"]
        self.seed: int = config["seed"]
        self._make_item_embedding = partial(
            config.make_item_embedding, self.n_items - 1, self.dim
        )
        self.user_embedding = nn.Embedding(self.n_users, self.dim)
        rng = generator(self.seed, Stream.INITIALISATION, 0)
        values = rng.standard_normal((self.n_users, self.dim)) * self.init_std
        self.user_embedding.weight.data.copy_(torch.from_numpy(values))
        self.register_buffer(
            "replica_of_user", torch.zeros(self.n_users, dtype=torch.int64)
        )
        self.networks: Tensor | None
        self.register_buffer("networks", None)
        self.embedding = None
        self.begin(None if config.warmup_rounds else config.item_embedding_of(dataset))

    def begin(self, embedding: ItemEmbedding | None) -> None:
        """Make items of an embedding, anew from its initial table, for everybody.

        Parameters
        ----------
        embedding : ItemEmbedding or None
            None: a row each, as they are.
        """
        device = self.user_embedding.weight.device
        if self.embedding is not None:
            for name in self.embedding.theta():
                delattr(self, name)
        self.embedding = embedding
        self.n_rows, self.width = self.n_items, self.dim
        if embedding is not None:
            embedding.to(device)
            self.n_rows, self.width = embedding.n_rows + 1, embedding.width
        rng = generator(self.seed, Stream.INITIALISATION, 1)
        if embedding is None:
            values = rng.standard_normal((self.n_rows, self.dim)) * self.init_std
            table = torch.from_numpy(values).float()
        else:
            start = embedding.initial_table(rng, self.init_std)
            table = torch.cat([torch.zeros(1, self.width), start])
        self.item_embedding = nn.Embedding(
            self.n_rows, self.width, _weight=table.to(device)
        )
        if embedding is not None:
            for name, value in embedding.theta().items():
                if hasattr(self, name):
                    raise ValueError(
                        f"item_embedding: its parameter {name!r} is one of the model"
                    )
                self.register_parameter(name, nn.Parameter(value.to(device)))
        self.replica_of_user.zero_()
        self.networks = None

    def begin_like(self, state_dict: Mapping[str, Any]) -> None:
        """Make items of what a saved state has them of: before or after a warm-up."""
        begun = "embedding.members" in state_dict
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

    # What federated training needs; ids count from 0, without [PAD].

    def hold_replicas(self, n_replicas: int, mapped: bool = False) -> None:
        """Make room for replicas, mapped to a file or not (only on the CPU).

        The first is as it was, the rest are zeros.
        """
        first = self.item_embedding.weight.data[: self.n_rows]
        if mapped and first.device.type == "cpu":
            zeros = mapped_zeros
        else:
            zeros = partial(torch.zeros, device=first.device)
        weight = zeros(n_replicas * self.n_rows, self.width)
        weight[: self.n_rows] = first
        self.item_embedding = nn.Embedding(len(weight), self.width, _weight=weight)
        n_theta = sum(value.numel() for value in self.theta().values())
        self.networks = (
            zeros(n_replicas, n_theta) if n_replicas > 1 and n_theta else None
        )

    def replica_of_client(self) -> Tensor:
        """Replica that each client holds, shape (n_clients,); a view."""
        replica: Tensor = self.replica_of_user[1:]
        return replica

    def client_rows(self) -> Tensor:
        """User embeddings without [PAD], shape (n_clients, dim); a view."""
        return self.user_embedding.weight.data[1:]

    def replicas(self) -> Tensor:
        """Item tables without [PAD], shape (n_replicas, n_rows - 1, width); a view."""
        tables: Tensor = self.item_embedding.weight.data
        return tables.view(-1, self.n_rows, self.width)[:, 1:]

    def theta(self) -> dict[str, Tensor]:
        """Parameters of the scoring network, by name; views."""
        return {name: parameter.data for name, parameter in self._network()}

    def _network(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.named_parameters():
            if not name.startswith(("user_embedding.", "item_embedding.")):
                yield name, parameter

    # What RecBole expects of a model.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return parameters; of replicas, those up to the last that a client holds."""
        state = super().state_dict(*args, **kwargs)
        used = int(self.replica_of_user.max()) + 1
        counts = {"item_embedding.weight": used * self.n_rows, "networks": used}
        for name, count in counts.items():
            if name in state and len(state[name]) > count:
                state[name] = leading(state[name], count)
        return state

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load parameters; make room for more replicas, keep room that is left over."""
        self.begin_like(state_dict)
        saved = len(state_dict["item_embedding.weight"]) // self.n_rows
        if saved * self.n_rows > len(self.item_embedding.weight):
            self.hold_replicas(saved, mapped=True)
        weight, networks = self.item_embedding.weight.data, self.networks
        self.item_embedding.weight.data = weight[: max(saved, 1) * self.n_rows]
        if networks is not None:
            self.networks = networks[:saved] if "networks" in state_dict else None
        try:
            return super().load_state_dict(state_dict, strict, assign)
        finally:
            self.item_embedding.weight.data, self.networks = weight, networks

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Logits of pairs: users (n,) with items (n,) or with candidates (n, m)."""
        replica = self.replica_of_user[user]
        theta = self._theta_of(replica)
        user_rows = self.user_embedding(user)[:, None]
        if item.dim() == 2:
            rows = self._vectors(item, replica[:, None], theta)
            return self.score(user_rows, rows, theta)
        if self.networks is None:
            rows = self._vectors(item[None], replica[None], theta)
            return self.score(user_rows[None, :, 0], rows, theta)[0]
        rows = self._vectors(item[:, None], replica[:, None], theta)
        return self.score(user_rows, rows, theta)[:, 0]

    def _vectors(self, item: Tensor, replica: Tensor, theta: Theta) -> Tensor:
        """Vectors of items (n_clients, n) as replicas (broadcast to that) have them."""
        if self.embedding is None:
            rows: Tensor = self.item_embedding(item + replica * self.n_rows)
            return rows
        own = (item - 1).clamp(min=0)  # nobody asks for [PAD]
        members = self.embedding.members[own] + 1 + replica[..., None] * self.n_rows
        return self.embedding.vectors(self.item_embedding(members), own, theta)

    def _table(self, replica: int, theta: Theta) -> Tensor:
        """Vectors of all items as a replica has them, shape (n_items, dim)."""
        if self.embedding is None:
            tables: Tensor = self.item_embedding.weight
            return tables.view(-1, self.n_rows, self.dim)[replica]
        device = self.item_embedding.weight.device
        everything = torch.arange(self.n_items, device=device)[None]
        return self._vectors(everything, torch.full_like(everything, replica), theta)[0]

    def _theta_of(self, replica: Tensor) -> dict[str, Tensor]:
        """Return networks of replicas, shapes (n, *shape); (1, *shape) if one."""
        if self.networks is None:
            return {name: parameter[None] for name, parameter in self._network()}
        return unflatten(self.networks[replica], self.theta())

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
        user = interaction[self.USER_ID]
        user_rows: Tensor = self.user_embedding(user)
        replica = self.replica_of_user[user]
        scores = user_rows.new_empty(len(user), self.n_items)
        for index in replica.unique().tolist():
            own = replica == index
            theta = self._theta_of(replica[own][:1])
            table = self._table(index, theta)
            scores[own] = self.score_all(user_rows[own], table, theta)
        return scores.flatten()
