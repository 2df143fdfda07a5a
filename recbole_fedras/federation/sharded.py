"""A simulation whose clients train in several processes: the same bits, sooner."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from recbole_fedras.data.clients import ClientData
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.client.node import Node
from recbole_fedras.federation.client.shard import Shard
from recbole_fedras.federation.client.states import joined, part_of
from recbole_fedras.federation.protocol import Ints
from recbole_fedras.federation.round import RoundReport, run_round
from recbole_fedras.federation.rounds import Rounds
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.federation.simulation import FederatedModel, Methods, Simulation
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.wire.frame import Step
from recbole_fedras.wire.links import Links
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.payload import Payload
from recbole_fedras.wire.transport import LinkTransport


def share_out(n_clients: int, block: int, n_shards: int) -> list[Ints]:
    """Deal blocks of clients out to shards, as evenly as blocks allow.

    Raises
    ------
    ConfigError
        If there are fewer blocks than shards.

    Examples
    --------
    >>> [own.tolist() for own in share_out(n_clients=5, block=2, n_shards=2)]
    [[0, 1, 4], [2, 3]]
    """
    blocks = np.arange(n_clients) // block
    n_blocks = int(blocks[-1]) + 1
    if n_shards > n_blocks:
        raise ConfigError(
            f"n_shards={n_shards} is not allowed; it must be at most {n_blocks} with "
            f"{n_clients} users: those of {block} consecutive numbers train together, "
            "as client_fraction says, and stay in one shard"
        )
    return [np.flatnonzero(blocks % n_shards == shard) for shard in range(n_shards)]


class ShardedSimulation(Simulation):
    """Server here, clients in processes; :class:`Simulation` says what else it takes.

    Between rounds, ``shard`` is what all clients together hold, once it is asked for by
    :meth:`state_dict`: so a checkpoint does not depend on the number of shards.

    Parameters
    ----------
    links : Links
        To processes that each serve a :class:`SimulatedNode`, with the clients that
        :func:`share_out` says.

    Raises
    ------
    ConfigError
        If there are fewer blocks of clients than processes.
    """

    def __init__(
        self,
        links: Links,
        model: FederatedModel,
        data: ClientData,
        methods: Methods,
        federation: Federation,
        training: LocalTraining,
        n_jobs: int = 1,
        introduction: Payload | None = None,
        version: int = 0,
    ) -> None:
        super().__init__(
            model, data, methods, federation, training, n_jobs, introduction, version
        )
        names = links.names()
        parts = share_out(data.n_clients, self.agreement.block, len(names))
        self._clients_of = clients_of = dict(zip(names, parts, strict=True))
        self._links = LinkTransport(links, clients_of, strict=True)
        self._carry_by(self._links, methods.world, training)
        begun = {"version": version, "embedding": model.embedding is not None}
        if self.tiers is not None:
            begun["tiers"] = self.tiers.tolist()
        self._links.tell("begin", dict.fromkeys(clients_of, begun))
        self._scatter()

    def run_round(self) -> RoundReport:
        """Run a round, as :meth:`Simulation.run_round`; ``shard`` does not follow."""
        with torch.no_grad(), threads(self._n_jobs):
            report = run_round(self.server, self._transport, self.ledger)
        self._behind = True
        report.seconds.update(self._links.seconds)
        self._links.seconds = {}
        return self._timed(report)

    def evaluate(self, phase: str, best: bool) -> dict[str, Any]:
        """Let each shard evaluate; see :meth:`Rounds.evaluate`.

        Shared tables are the newest, unless clients have just been given others.
        """
        return self._links.ask_each("evaluate", phase, self._newest)

    def _newest(self, versions: Sequence[int]) -> Sequence[Message]:
        return self.server.policy.newest(versions) if self._behind else ()

    def carried(self) -> dict[str, Any]:
        """Return bytes of requests and answers."""
        return dict(self._links.carried)

    def go_on_from(self, other: Rounds) -> None:
        """Take over what other rounds have come to, in processes too."""
        super().go_on_from(other)
        self._scatter()

    def load_clients(self, state: dict[str, Any]) -> None:
        """Let clients hold what they did, in their processes too."""
        super().load_clients(state)
        self._scatter()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next round depends on, as of one shard."""
        if self._behind:
            self._gather()
        return super().state_dict()

    def _scatter(self) -> None:
        whole = self.shard.state_dict()
        self._links.tell(
            "load",
            {
                name: to_pieces(part_of(whole, clients))
                for name, clients in self._clients_of.items()
            },
        )
        self._behind = False

    def _gather(self) -> None:
        found = self._links.ask_each("state", newest=self._newest)
        states = [from_pieces(found[name]) for name in self._clients_of]
        self.shard.load_state_dict(joined(states, list(self._clients_of.values())))
        self._behind = False


def to_pieces(state: dict[str, Any], most: int = 2**30) -> list[bytes]:
    """Write a state as ``torch.save`` does, in pieces of at most so many bytes.

    MessagePack has no bytes of 4 GiB, which tables of clients' own may well be.

    Examples
    --------
    >>> state = {"table": torch.ones(3)}
    >>> pieces = to_pieces(state, most=100)
    >>> len(pieces) > 9, max(map(len, pieces)), from_pieces(pieces)
    (True, 100, {'table': tensor([1., 1., 1.])})
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with buffer.getbuffer() as whole:
        return [bytes(whole[at : at + most]) for at in range(0, len(whole), most)]


def from_pieces(pieces: Iterable[bytes]) -> dict[str, Any]:
    """Read what :func:`to_pieces` wrote."""
    buffer = io.BytesIO()
    buffer.writelines(pieces)
    buffer.seek(0)
    state: dict[str, Any] = torch.load(buffer, weights_only=True)
    return state


class SimulatedNode(Node):
    """A node of a :class:`ShardedSimulation`, which may know all that its clients hold.

    Parameters
    ----------
    shard, evaluate
        As for :class:`Node`.
    begin : callable
        Takes a version, whether items have an embedding, and clients' bandwidth tiers,
        if they do not follow from the seed; makes the shard anew.
    """

    def __init__(
        self,
        shard: Shard,
        evaluate: Callable[[str], dict[str, Any]],
        begin: Callable[[int, bool, Ints | None], Shard],
    ) -> None:
        super().__init__(shard, evaluate)
        self._begin = begin

    def _do(self, what: str, messages: list[Message], value: Any) -> Iterator[Step]:
        if what == "begin":
            tiers = value.get("tiers")
            tiers = None if tiers is None else np.array(tiers, np.int64)
            self.shard = self._begin(value["version"], value["embedding"], tiers)
        elif what == "load":
            self.shard.load_state_dict(from_pieces(value))
        elif what == "state":
            yield Step("state", value=to_pieces(self.shard.state_dict()))
        else:
            yield from super()._do(what, messages, value)
