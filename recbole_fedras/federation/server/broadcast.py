"""Replica policy broadcast: everybody has every downlink; with and without feedback."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate
from recbole_fedras.federation.protocol import Ints, whole_table
from recbole_fedras.federation.server.downlink import PublishedDownlinks
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload


class Broadcast(PublishedDownlinks):
    """Participants are brought up to date with every downlink since their last.

    This is the FedRAS paper's assumption, with its price: clients of a bandwidth tier
    hold one table, and who takes part again is sent first what it missed, the
    downlinks or, where that is smaller, the whole table. Networks of missed downlinks
    stay out: the newest replaces them.

    With ``downlink_feedback`` a downlink holds all that the replica lacks, the errors
    of earlier downlinks included. That is error feedback, as in EF-SGD (Seide et al.,
    Interspeech 2014; Karimireddy et al., ICML 2019), with ``Q - replica`` as the memory
    of what was not sent. Each tier then has errors, and so a compressor, of its own.
    """

    shared = True

    def _set_up(self) -> None:
        table = self._parameters.item_table
        self.mirrors = table.repeat(len(self._agreement.budgets.downlink), 1, 1)
        # Views: a tensor takes longer to be indexed than all else of a delivery.
        self._mirror_of_tier: Sequence[Tensor] = tuple(self.mirrors)
        self._before = self.mirrors.clone()
        # Downlinks of earlier versions, while together they are smaller than the table.
        self._missable: list[deque[Message]] = [deque() for _ in self.mirrors]
        # Of this round, each made once for all who need it, by tier.
        self._tables: dict[int, Message] = {}
        self._resent: dict[int, list[Message]] = {}
        self._size_of_table = len(whole_table(table).to_bytes())
        self._changes: list[RowUpdate] = []
        self._feedback = self._agreement.federation.downlink_feedback
        self._compressors = [self._compressor]
        if self._feedback:
            self._compressors = [copy.deepcopy(self._compressor) for _ in self.mirrors]
        self._states = [compressor.state_dict() for compressor in self._compressors]
        self._next_states = self._states
        self._past: list[Message] = []

    def _base_of_all(self) -> Tensor | None:
        one = len(self.mirrors) == 1 or self._feedback  # before it all start alike
        return self.mirrors[0] if one else None

    def _encode(self, update: RowUpdate) -> list[Payload]:
        if not self._feedback:
            return super()._encode(update)
        round = self._parameters.round - 1
        return [
            compressor.encode_broadcast(
                self._lacking(table),
                [budget],
                self._agreement.context(round, base=table),
            )[0]
            for compressor, table, budget in zip(
                self._compressors,
                self.mirrors,
                self._agreement.budgets.downlink,
                strict=True,
            )
        ]

    def mirror_of(self, client: int) -> Tensor:
        """Return the table of the client's tier."""
        return self._mirror_of_tier[int(self._agreement.tier_of_client[client])]

    def deliver(self, clients: Iterable[int]) -> Iterator[Message]:
        """Send what was missed, then the newest message."""
        for client in clients:
            tier = int(self._agreement.tier_of_client[client])
            for message in self._missed(int(self.version_of[client]), tier):
                yield message.to(client)
            yield self.messages[tier].to(client)

    def _missed(self, version: int, tier: int) -> list[Message]:
        """Return what leads from a version to the one before the newest."""
        newest = self.messages[tier].header.version
        if version >= newest - 1:
            return []
        missed = [
            message
            for message in self._earlier(tier)
            if message.header.version > version
        ]
        complete = len(missed) == newest - 1 - version
        if complete and sum(map(len, missed)) <= self._size_of_table:
            return missed
        return [self._table(tier)]

    def _earlier(self, tier: int) -> list[Message]:
        """Return the downlinks before the newest, as they are sent again."""
        if tier not in self._resent:
            header = Header(Kind.CATCH_UP, self.messages[tier].header.version, 0, 0, 0)
            self._resent[tier] = [
                Message(header._replace(version=past, base=past - 1), message.body)
                for message in self._missable[tier]
                for past in [message.header.version]
            ]
        return self._resent[tier]

    def _table(self, tier: int) -> Message:
        version = self.messages[tier].header.version
        header = Header(Kind.TABLE, version, 0, version - 1, None)
        if tier not in self._tables:
            self._tables[tier] = Message.of(whole_table(self._before[tier]), header)
        return self._tables[tier]

    def newest(self, versions: Sequence[int]) -> list[Message]:
        """Return, tier by tier, what is missing and the newest message.

        They are addressed to one of the tier's clients, which stands for all.
        """
        tiers, clients = np.unique(self._agreement.tier_of_client, return_index=True)
        held = dict(enumerate(versions))  # which may be of fewer tiers
        return [
            message.to(client)
            for tier, client in zip(tiers.tolist(), clients.tolist(), strict=True)
            for version in [held.get(tier, self._agreement.start)]
            for message in [*self._missed(version, tier), self.messages[tier]]
            if version < message.header.version
        ]

    def publish(self, update: RowUpdate) -> None:
        """Encode, and decode what all replicas will apply."""
        super().publish(update)
        self._changes = [
            self._decode(message, table)
            for message, table in zip(self._next, self.mirrors, strict=True)
        ]
        self._past = [
            Message.of(message.payload.without("theta"), message.header)
            for message in self.messages
        ]

    def prepare(self) -> None:
        """Take what a commit needs of each tier's compressor too."""
        super().prepare()
        self._next_states = [
            compressor.state_dict() for compressor in self._compressors
        ]
        self._figures |= self._compressors[0].metrics()

    def commit(self, counted: Ints) -> None:
        """Apply the newest downlink to all mirrors; keep it for those who miss it."""
        for log, past in zip(self._missable, self._past, strict=True):
            log.append(past)
            while sum(len(missed.body) for missed in log) > self._size_of_table:
                log.popleft()
        super().commit(counted)
        self._tables, self._resent = {}, {}
        self._before.copy_(self.mirrors)
        for table, change in zip(self.mirrors, self._changes, strict=True):
            table.index_add_(0, change.ids, change.rows)
        self._states = self._next_states

    def rollback(self) -> None:
        """Restore the compressors' states too."""
        super().rollback()
        for compressor, state in zip(self._compressors, self._states, strict=True):
            compressor.load_state_dict(state)

    def _drift(self, client: int) -> float:
        return self._drifts[int(self._agreement.tier_of_client[client])]

    def metrics(self, clients: Ints) -> dict[str, float]:
        """Return figures of the compressor, and the drift."""
        self._drifts = [self._parameters.drift(table) for table in self.mirrors]
        return super().metrics(clients)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return super().state_dict() | {
            "mirrors": self.mirrors,
            "before": self._before,
            "missable": [[past.data for past in log] for log in self._missable],
            "compressors": self._states,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.mirrors.copy_(state["mirrors"])
        self._before.copy_(state["before"])
        self._missable = [
            deque(map(Message.from_bytes, log)) for log in state["missable"]
        ]
        self._tables, self._resent = {}, {}
        self._states = state["compressors"]
        self.rollback()
