"""What attackers at the server infer of clients, and how right they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from recbole_fedras.data.clients import ClientData, Ints
from recbole_fedras.errors import PayloadError
from recbole_fedras.experiments.inference.base import Attacker, Floats, Known, Seen
from recbole_fedras.federation.client.training import LocalModel
from recbole_fedras.federation.simulation import FederatedModel, Methods, Simulation
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.transport import Answer, Transport

#: Clients whose updates are read: enough for means, and few for memory.
WATCHED = 100

Listener = Callable[[Known, Seen], None]


class TappedSimulation(Simulation):
    """A simulation in which somebody at the server reads along, and changes nothing.

    The bytes of answers are parsed and decoded once more on their way to the server, by
    a copy of the uplink's compressor and with what the server knows.

    Parameters
    ----------
    listener : callable
        ``listener(known, seen)``.
    model, data, methods, *settings
        As for :class:`Simulation`.
    """

    def __init__(
        self,
        listener: Listener,
        model: FederatedModel,
        data: ClientData,
        methods: Methods,
        *settings: Any,
    ) -> None:
        # As it is before anybody trains: what everybody can draw from the seed.
        public_model = copy.deepcopy(model)
        super().__init__(model, data, methods, *settings)
        self._listener, self._uplink = listener, copy.deepcopy(methods.uplink)
        public = replace(self.agreement.federation, client_seed=None)
        self._known = Known(
            replace(self.agreement, federation=public),
            self.shard.training,
            LocalModel(
                public_model.score, public_model.theta(), public_model.train_clients
            ),
        )
        draw = generator(self.agreement.federation.seed, Stream.ATTACK, 0, 3)
        watched = draw.permutation(self.server.eligible)[:WATCHED]
        self._watched = frozenset(watched.tolist())
        self._transport = _Tap(self._transport, self._read)

    def _read(self, answer: Answer) -> None:
        message = Message.from_parts(answer.head, answer.body)
        header = message.header
        if header.client not in self._watched:
            return
        base = self.server.policy.mirror_of(header.client)
        ctx = self.agreement.context(header.round, header.client, base=base)
        try:
            update = self._uplink.decode(message.payload, ctx)
        except PayloadError:
            return  # which the server refuses
        seen = Seen(header, update, base, self.server.policy.network)
        self._listener(self._known, seen)


class _Tap:
    """A transport whose answers are read before they are passed on."""

    def __init__(self, transport: Transport, read: Callable[[Answer], None]) -> None:
        self._transport, self._read = transport, read

    def exchange(
        self, messages: Iterable[Message], deadline: float | None = None
    ) -> Iterator[Answer]:
        for answer in self._transport.exchange(messages, deadline):
            self._read(answer)
            yield answer

    def settle(self, receipts: Iterable[Message]) -> None:
        self._transport.settle(receipts)


class Found(NamedTuple):
    """How well an attacker recovers clients' items, the mean over clients.

    Attributes
    ----------
    auc : float
        Chance that an item of the client's scores higher than another; 0.5 is chance.
    precision : float
        Share of the client's items among the best scored, as many as it has.
    """

    auc: float
    precision: float


class Wiretap:
    """A kind of simulation whose clients attackers listen to, and what these find.

    Takes ``8 n_items`` bytes for each attacker and client that is watched.

    Parameters
    ----------
    attackers : mapping of str to Attacker
    """

    def __init__(self, attackers: Mapping[str, Attacker]) -> None:
        self._attackers = attackers
        self._scores: dict[str, dict[int, Floats]] = {name: {} for name in attackers}
        self._data: ClientData | None = None

    def __call__(self, *args: Any) -> TappedSimulation:
        """Make a simulation; parameters are those of :class:`Simulation`."""
        simulation = TappedSimulation(self._listen, *args)
        self._data = simulation.data
        return simulation

    def _listen(self, known: Known, seen: Seen) -> None:
        client = seen.header.client
        for name, attacker in self._attackers.items():
            scores, before = attacker.scores(seen, known), self._scores[name]
            if attacker.repeated and client in before:
                scores = scores + before[client]
            before[client] = scores

    def found(self) -> dict[str, Found]:
        """Compare with what clients have interacted with in training.

        Returns
        -------
        dict of str to Found
            By attacker; empty where nobody has been heard.
        """
        data = self._data
        return {
            name: Found(*np.mean([judge(s, data.of(c)) for c, s in scores.items()], 0))
            for name, scores in self._scores.items()
            if data is not None and scores
        }


def judge(scores: Floats, items: Ints) -> Found:
    """Compare scores of all items with those that are a client's.

    Of equal scores the order is random, and the precision its mean.

    Examples
    --------
    >>> judge(np.array([0.1, 0.9, 0.8, 0.0]), np.array([1, 2]))
    Found(auc=1.0, precision=1.0)
    >>> judge(np.zeros(4), np.array([1, 2]))
    Found(auc=0.5, precision=0.5)
    """
    own: NDArray[np.bool_] = np.zeros(len(scores), bool)
    own[items] = True
    count = int(own.sum())
    above_chance = rankdata(scores)[own].sum() - count * (count + 1) / 2
    least = np.sort(scores)[-count]
    above, equal = scores > least, scores == least
    hits = (own & above).sum() + (own & equal).sum() * (
        (count - above.sum()) / equal.sum()
    )
    auc = above_chance / (count * (len(scores) - count))
    return Found(float(auc), float(hits / count))
