"""The clients' half of a round: those that one process holds participate and settle."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import Compressor
from recbole_fedras.data.clients import ClientData, Samples
from recbole_fedras.embedding.base import ItemEmbedding, take_introduction
from recbole_fedras.errors import NonFiniteError
from recbole_fedras.federation.attacks.base import Attack
from recbole_fedras.federation.client.attackers import Attackers
from recbole_fedras.federation.client.cohort import draw_groups, parts
from recbole_fedras.federation.client.feedback import UplinkFeedback
from recbole_fedras.federation.client.replicas import (
    GridReplicas,
    OwnReplicas,
    Replicas,
    SharedReplicas,
)
from recbole_fedras.federation.client.sender import Sender
from recbole_fedras.federation.client.training import (
    LocalModel,
    Participants,
    Trained,
    Workspace,
    train_cohort,
)
from recbole_fedras.federation.protocol import Agreement, Ints
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.federation.transforms import Transform
from recbole_fedras.numeric.stopwatch import Stopwatch
from recbole_fedras.numeric.theta import Theta, flatten, unflatten
from recbole_fedras.wire.message import TALKS, Kind, Message
from recbole_fedras.wire.payload import PayloadError


class Start(NamedTuple):
    """What clients start from: drawn from the shared seed, so nobody sends it.

    Attributes
    ----------
    clients : ndarray of int64, shape (n_local,)
        Those of the shard, increasing.
    user_rows : Tensor, shape (n_local, dim)
        Their private rows; changed in place.
    table : Tensor, shape (n_items, width)
        The item table.
    theta : mapping of str to Tensor
        The network.
    """

    clients: Ints
    user_rows: Tensor
    table: Tensor
    theta: Theta


class ClientMethods(NamedTuple):
    """What clients do with messages and updates.

    Attributes
    ----------
    uplink, downlink : Compressor
        Of the shard's own: server and clients share no object.
    transforms : sequence of Transform
        Applied to each update, in their order.
    shared_replicas : bool
        Whether clients of a bandwidth tier hold one table, ``DownlinkPolicy.shared``.
    on_grid : bool
        Whether that stands on a grid, ``DownlinkPolicy.on_grid``.
    attack : Attack or None
        What the share ``Federation.attack_share`` of clients does.
    """

    uplink: Compressor
    downlink: Compressor
    transforms: Sequence[Transform] = ()
    shared_replicas: bool = True
    on_grid: bool = False
    attack: Attack | None = None


class _Private(NamedTuple):
    """What clients keep of a training, once it has counted."""

    round: int
    clients: Ints
    user_rows: Tensor
    user_states: Tensor | None

    def only(self, kept: NDArray[np.bool_]) -> _Private:
        """Return what some of the clients keep."""
        mask, states = torch.from_numpy(kept), self.user_states
        return _Private(
            self.round,
            self.clients[kept],
            self.user_rows[mask],
            None if states is None else states[mask],
        )


class Shard:
    """Clients that one process holds: their interactions and all that is private.

    A shard knows the server by messages only. :meth:`participate` answers invitations;
    what is private changes for good when :meth:`settle` shows that an answer counted.
    To be invited again to the same round does the same again.

    Parameters
    ----------
    agreement : Agreement
    data : ClientData
        Of all clients; those without interactions here are another shard's.
    model : LocalModel
        How to score and to train; its ``theta`` gives names and shapes.
    start : Start
    methods : ClientMethods
    training : LocalTraining

    Attributes
    ----------
    model : LocalModel
    methods : ClientMethods
    clients : ndarray of int64, shape (n_local,)
        Who they are, increasing.
    user_rows : Tensor, shape (n_local, dim)
    user_states : Tensor or None, shape (n_local, 2 dim + 1)
        Of the users' Adam.
    replicas : Replicas
    feedback : UplinkFeedback or None
    seconds : Stopwatch

    Examples
    --------
    >>> from recbole_fedras.compressor.base import empty_update, raw_payload
    >>> from recbole_fedras.compressor.none import NoCompression
    >>> from recbole_fedras.federation.protocol import receipt
    >>> from recbole_fedras.federation.settings import Federation
    >>> from recbole_fedras.wire.message import Header
    >>> def score(users, items, theta):
    ...     return (users * items).sum(-1)
    >>> federation, table = Federation(1, 1.0, (0.0,), "fedavg"), torch.ones(4, 2)
    >>> agreement = Agreement.of(federation, 1, table, 0, *2 * [NoCompression()])
    >>> data = ClientData.from_pairs(np.array([0, 0]), np.array([1, 3]), 1, 4)
    >>> start = Start(np.arange(1), torch.ones(1, 2), table, theta={})
    >>> methods = ClientMethods(NoCompression(), NoCompression())
    >>> training = LocalTraining(0.1, 0.1, 0.1, 1, batch_size=8, n_negatives=2)
    >>> model = LocalModel(score, theta={})
    >>> shard = Shard(agreement, data, model, start, methods, training)
    >>> header = Header(Kind.DOWNLINK, round=0, client=0, version=0, base=0)
    >>> nothing = raw_payload(empty_update(2), n_items=4)
    >>> (answer,) = shard.participate([Message.of(nothing, header)])
    >>> answer.header.kind.name, answer.header.n_samples, shard.user_rows.tolist()
    ('UPDATE', 6, [[1.0, 1.0]])
    >>> shard.settle([receipt(round=0, client=0)])  # it has counted
    >>> shard.user_rows.tolist() == [[1.0, 1.0]]
    False
    """

    def __init__(
        self,
        agreement: Agreement,
        data: ClientData,
        model: LocalModel,
        start: Start,
        methods: ClientMethods,
        training: LocalTraining,
    ) -> None:
        self._agreement, self._data, self.model = agreement, data, model
        self._uplink, self.training = methods.uplink, training
        self.methods = methods
        self.clients, self.user_rows = start.clients, start.user_rows
        self.user_states: Tensor | None = None
        if training.user_optimizer == "adam":
            size = (len(self.clients), 2 * self.user_rows.shape[1] + 1)
            self.user_states = self.user_rows.new_zeros(size)
        self.replicas = _replicas(agreement, start, methods)
        self.feedback: UplinkFeedback | None = None
        if agreement.federation.uplink_feedback:
            self.feedback = UplinkFeedback(agreement, len(self.clients))
        self.seconds = Stopwatch()
        self._attackers = Attackers(agreement, methods.attack)
        self._maskers = None
        if (secure := agreement.federation.secure) is not None:
            # What it needs is there with the extra privacy only.
            from recbole_fedras.federation.client.maskers import Maskers

            self._maskers = Maskers(agreement, methods.uplink, secure)
        self._sender = Sender(
            agreement,
            methods.uplink,
            methods.transforms,
            self.feedback,
            self.seconds,
            self._attackers.hostile,
            self._maskers,
        )
        self._workspace = Workspace()
        self._pending: list[_Private] = []
        self._window = agreement.federation.staleness_window
        self._newest = agreement.start - 1  # round that anybody was invited to

    @property
    def embedding(self) -> ItemEmbedding | None:
        """What items are made of."""
        return self.model.embedding

    def twin(self, uplink: Compressor) -> Shard:
        """Return a copy whose clients send by another compressor; nothing is shared."""
        theta = unflatten(self.replicas.theta, self.model.theta)
        table = self.replicas.tables[0]
        start = Start(self.clients, self.user_rows.clone(), table, theta)
        methods = self.methods._replace(uplink=uplink)
        shard = Shard(
            self._agreement, self._data, self.model, start, methods, self.training
        )
        shard.load_state_dict(copy.deepcopy(self.state_dict()))
        return shard

    def user_rows_of(self, clients: Ints) -> Tensor:
        """Return private rows in force, shape (n, dim)."""
        return self.user_rows[self._places(clients)]

    def participate(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Answer invitations: apply, train, compress; yield an update for each client.

        Parameters
        ----------
        messages : iterable of Message
            Those to one client follow each other, clients increase.

        Raises
        ------
        NonFiniteError
            If local training diverged.
        PayloadError
            If a message cannot be applied.
        """
        messages = iter(messages)
        first = list(islice(messages, 1))
        messages = chain(first, messages)
        if self._maskers is not None and first and first[0].header.kind in TALKS:
            yield from self._maskers.answer(messages)
            return
        self.settle(())  # what no receipt came for
        n_parts = 1 if self.embedding is None else self.embedding.n_parts
        for part in parts(
            messages,
            self._agreement,
            self._data,
            self.training,
            n_parts,
            self._attackers.colluding,
        ):
            with self.seconds("compression"):
                self._apply([message for invitation in part for message in invitation])
            clients = np.array([invitation[0].header.client for invitation in part])
            self._require_local(clients)
            round = part[0][-1].header.round
            newest = [invitation[-1].payload for invitation in part]
            table_of = self.replicas.table_of(clients.tolist())
            trained = self._train(clients, table_of, round)
            private = _Private(round, clients, trained.user_rows, trained.user_states)
            self._await(private)
            bases = [self.replicas.tables[table] for table in table_of.tolist()]
            yield from self._sender.answers(trained, round, bases, newest)

    def _await(self, private: _Private) -> None:
        """Keep what a receipt may put into force; it replaces what is older."""
        self._newest = private.round
        if self._window:
            self._pending = [
                older.only(~np.isin(older.clients, private.clients))
                for older in self._pending
            ]
        self._pending.append(private)

    def _require_local(self, clients: Ints) -> None:
        """Refuse what is for another shard's clients.

        Raises
        ------
        PayloadError
            That names one.
        """
        others = np.setdiff1d(clients, self.clients)
        if len(others):
            raise PayloadError(f"client {others[0]} is not one of this shard")

    def settle(self, receipts: Iterable[Message]) -> None:
        """Put into force what counted, forget what no receipt can come for any more.

        Receipts of another round than those that are pending mean nothing.
        """
        headers = [message.header for message in receipts]
        counted, waiting = set(), []
        for private in self._pending:
            told = [one.client for one in headers if one.round == private.round]
            counted.update(told)
            kept = np.isin(private.clients, told)
            places = self._places(private.clients[kept])
            self.user_rows[places] = private.user_rows[kept]
            if self.user_states is not None and private.user_states is not None:
                self.user_states[places] = private.user_states[kept]
            # The newest round may have failed, and then what is oldest may still count.
            if self._window and private.round + self._window >= self._newest:
                waiting.append(private.only(~kept))
        self._pending = waiting
        self.replicas.commit(counted)
        if self.feedback is not None:
            self.feedback.commit(counted)

    def refresh(self, messages: Sequence[Message]) -> None:
        """Bring shared tables up to date between rounds, as evaluation sees them."""
        self.replicas.apply(messages)

    def _places(self, clients: Ints) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.clients, clients))

    # What happens to a part.

    def _apply(self, messages: list[Message]) -> None:
        changes = []
        for message in messages:
            if message.header.kind is not Kind.INTRODUCTION:
                changes.append(message)
            elif self.embedding is not None:
                take_introduction(self.embedding, message.payload)
        self.replicas.apply(changes)

    def _train(self, clients: Ints, table_of: Tensor, round: int) -> Trained:
        places, tables = self._places(clients), self.replicas.tables
        states = self.user_states
        participants = Participants(
            torch.from_numpy(clients),
            self.user_rows[places],
            None if states is None else states[places],
            tables,
            table_of,
        )
        theta = unflatten(self.replicas.theta, self.model.theta)
        model = self.model._replace(theta=theta)
        with self.seconds("local_training"):
            trained = train_cohort(
                model,
                participants,
                self._samples(clients, round),
                self.training,
                self._uplink.gradient_map(
                    self._agreement.budgets.uplink[0], self._agreement.context(round)
                ),
                self._workspace,
            )
            self._require_finite(trained, round)
            return self._attackers.forge(trained, model, participants, round)

    def _samples(self, clients: Ints, round: int) -> list[Samples]:
        """Draw what each group trains on; attackers may label theirs otherwise."""
        whole = not self.model.on_cpu
        agreement, training = self._agreement, self.training
        groups, drawn = draw_groups(
            clients, agreement, self._data, training, round, whole
        )
        for group, samples in zip(groups, drawn, strict=True):
            self._attackers.mislabel(samples, group, training.pairwise)
        return drawn

    def _require_finite(self, trained: Trained, round: int) -> None:
        bad = (~trained.losses.isfinite()).nonzero().flatten()
        if not len(bad):
            return
        training = self.training
        rates = {
            "learning_rate": training.learning_rate,
            "theta_learning_rate": training.theta_learning_rate,
        }
        if training.upload_gradient:
            rates = {"user_learning_rate": training.user_learning_rate}
        optimization = self._agreement.federation.optimization
        rates["server_learning_rate"] = optimization.learning_rate
        lower = ", ".join(f"{key}={rate}" for key, rate in rates.items())
        raise NonFiniteError(
            f"round {round}: local training is not finite any more (loss "
            f"{float(trained.losses[bad[0]]):.4g}, of {len(bad)} clients in "
            f"{len(trained.losses)}); lower one of {lower}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that the shard's clients hold."""
        state = {
            "user_rows": self.user_rows,
            "user_states": self.user_states,
            "replicas": self.replicas.state_dict(),
            "embedding": self.embedding.state_dict() if self.embedding else None,
            "feedback": self.feedback.state_dict() if self.feedback else None,
        }
        return state | {"pending": self._waiting()} if self._window else state

    def _waiting(self) -> dict[int, dict[str, Any]]:
        """Return by client what a receipt may put into force yet."""
        return {
            client: private.only(private.clients == client)._asdict()
            | {"clients": torch.tensor([client])}
            for private in self._pending
            for client in private.clients.tolist()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._pending = [
            _Private(**waiting | {"clients": waiting["clients"].numpy()})
            for waiting in state.get("pending", {}).values()
        ]
        self.user_rows.copy_(state["user_rows"])
        if self.user_states is not None:
            self.user_states.copy_(state["user_states"])
        self.replicas.load_state_dict(state["replicas"])
        if self.embedding is not None:
            self.embedding.load_state_dict(state["embedding"])
        if self.feedback is not None:
            self.feedback.load_state_dict(state["feedback"])


def _replicas(agreement: Agreement, start: Start, methods: ClientMethods) -> Replicas:
    theta = flatten(start.theta)
    if methods.shared_replicas:
        kind = GridReplicas if methods.on_grid else SharedReplicas
        return kind(agreement, methods.downlink, theta, start.table)
    return OwnReplicas(agreement, methods.downlink, theta, start.table, start.clients)
