"""Replica policy broadcast: everybody has every downlink; with and without feedback."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate
from recbole_fedras.federation.replica import PublishedReplicas
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.payload import Payload


class BroadcastReplicas(PublishedReplicas):
    """Everybody applies every downlink, also while not selected.

    This is the FedRAS paper's assumption. All clients of a bandwidth tier hold the
    same table. What a participant had missed since he last took part is charged as
    catch-up beside the downlink: the missed payloads, or the dense table if smaller.
    """

    cumulative = True

    def _hold(self, cohort_size: int) -> None:
        self._model.hold_replicas(len(self._budgets))
        self._model.replica_of_client()[:] = self._tier_of_client
        self.tables[1:] = self.tables[0]
        super()._hold(cohort_size)
        self._share_theta(self.messages[0])
        # Bytes published before each version, by tier.
        n_versions = 1 + self._server.round
        self._published = torch.zeros(len(self._budgets), n_versions, dtype=torch.int64)

    def _share_theta(self, message: Message) -> None:
        if self._model.networks is not None:
            self._model.networks[:] = self._theta(message.payload)

    def tables_of(self, clients: Tensor) -> Tensor:
        """Return the tables that they hold."""
        return self._tier_of_client[clients]

    def deliver(self, clients: Tensor) -> None:
        """Send the newest downlink, and charge what was missed."""
        super().deliver(clients)
        tier = self._tier_of_client[clients]
        # The newest downlink is not among those missed: it has just been sent.
        newest = self._published.shape[1] - 1
        before = max(newest - 1, 0)
        held = self.held[clients].clamp(max=before)
        missed = self._published[tier, before] - self._published[tier, held]
        catch_up = int(missed.clamp(max=self.dense_bytes).sum())
        self._channel.ledger.catch_up(catch_up)

    def publish(self, update: RowUpdate) -> None:
        """Encode, and decode what all replicas will apply."""
        super().publish(update)
        held = self._server.round - 1
        self._changes = [
            self._decode(message, held, table)[0]
            for message, table in zip(self._next, self.tables, strict=True)
        ]

    def _common_base(self) -> Tensor | None:
        return self.tables[0] if len(self._budgets) == 1 else None

    def commit(self, cohort: Tensor) -> None:
        """Apply the newest downlink to all replicas."""
        super().commit(cohort)
        for table, change in zip(self.tables, self._changes, strict=True):
            table.index_add_(0, change.ids.to(table.device), change.rows.to(table))
        self._share_theta(self.messages[0])
        # Who missed it would not need its theta: the next one replaces it.
        sizes = [
            [len(message.data) - message.part_bytes["theta"]]
            for message in self.messages
        ]
        newest = self._published[:, -1:] + torch.tensor(sizes)
        self._published = torch.cat([self._published, newest], dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return super().state_dict() | {"published": self._published}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._published = state["published"]


class FeedbackReplicas(BroadcastReplicas):
    """Broadcast of all that the replica lacks, errors of earlier downlinks included.

    Error feedback, as in EF-SGD (Seide et al., Interspeech 2014; Karimireddy et al.,
    ICML 2019), with ``Q - replica`` as the memory of what was not sent. Each bandwidth
    tier has errors, and so a compressor, of its own.
    """

    def _hold(self, cohort_size: int) -> None:
        super()._hold(cohort_size)
        self._compressors = [copy.deepcopy(self._compressor) for _ in self._budgets]
        self._states = [own.state_dict() for own in self._compressors]

    def _common_base(self) -> Tensor:
        return self.tables[0]  # of the first messages: all tables start alike

    def _encode(self, update: RowUpdate) -> list[Payload]:
        round = self._server.round - 1
        return [
            compressor.encode_broadcast(
                self._ahead_of(table), [budget], self._context(round, table)
            )[0]
            for compressor, table, budget in zip(
                self._compressors, self.tables, self._budgets, strict=True
            )
        ]

    def metrics(self, cohort: Tensor) -> dict[str, float]:
        """Return figures of the first tier's compressor."""
        return super().metrics(cohort) | self._compressors[0].metrics()

    def commit(self, cohort: Tensor) -> None:
        """Put the compressors' states into force too."""
        super().commit(cohort)
        self._states = [own.state_dict() for own in self._compressors]

    def rollback(self) -> None:
        """Restore the compressors' states too."""
        super().rollback()
        for compressor, state in zip(self._compressors, self._states, strict=True):
            compressor.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return super().state_dict() | {"compressors": self._states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._states = state["compressors"]
        self.rollback()
