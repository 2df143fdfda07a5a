"""How clients send updates: transformed, with what they owe, compressed, sealed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import CohortUpdate, Compressor, RoundContext
from recbole_fedras.federation.budgets import hold_to
from recbole_fedras.federation.client.feedback import UplinkFeedback
from recbole_fedras.federation.client.training import Trained
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.transforms import SharedUpdate, Transform
from recbole_fedras.numeric.stopwatch import Stopwatch
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload


class Masks(Protocol):
    """What masks updates; see :class:`recbole_fedras.federation.client.maskers`."""

    def begin(
        self, updates: CohortUpdate, ctxs: Sequence[RoundContext]
    ) -> list[Message]:
        """Keep what clients are to send; return their keys."""


class Sender:
    """Makes messages of what clients have trained.

    Parameters
    ----------
    agreement : Agreement
    uplink : Compressor
    transforms : sequence of Transform
    feedback : UplinkFeedback or None
    seconds : Stopwatch
    hostile : ndarray of bool, shape (n_clients,)
        Clients that no transform binds.
    maskers : Masks, optional
        Keep updates until they are masked, and make keys the answer.
    """

    def __init__(
        self,
        agreement: Agreement,
        uplink: Compressor,
        transforms: Sequence[Transform],
        feedback: UplinkFeedback | None,
        seconds: Stopwatch,
        hostile: NDArray[np.bool_],
        maskers: Masks | None = None,
    ) -> None:
        self._agreement, self._uplink = agreement, uplink
        self._transforms, self._feedback = transforms, feedback
        self._seconds, self._hostile = seconds, hostile
        self._maskers = maskers

    def answers(
        self,
        trained: Trained,
        round: int,
        bases: Iterable[Tensor],
        downlinks: Iterable[Payload],
    ) -> list[Message]:
        """Return each client's message, in their order.

        Parameters
        ----------
        trained : Trained
        round : int
        bases : iterable of Tensor
            The table that each client trained from.
        downlinks : iterable of Payload
            What each was sent last.
        """
        clients = trained.updates.clients.tolist()
        ctxs = [
            self._agreement.context(round, client, None, base, downlink)
            for client, base, downlink in zip(clients, bases, downlinks, strict=True)
        ]
        with self._seconds("compression"):
            updates = self._transformed(trained.updates, ctxs)
            if self._maskers is not None:
                return self._maskers.begin(updates, ctxs)
            if self._feedback is not None:
                self._feedback.add_to(updates)
            payloads = self._encoded(updates, ctxs)
        with self._seconds("serialisation"):
            messages = self._sealed(payloads, trained, round)
        if self._feedback is not None:
            with self._seconds("compression"):
                self._keep_lost(self._feedback, updates, messages, ctxs)
        return messages

    def _transformed(
        self, updates: CohortUpdate, ctxs: Sequence[RoundContext]
    ) -> CohortUpdate:
        if not self._transforms:
            return updates
        changed = []
        for rows, network, ctx in zip(updates, updates.theta, ctxs, strict=True):
            update = SharedUpdate(rows, network)
            if not self._hostile[ctx.sender]:
                private = replace(ctx, seed=self._agreement.client_seed)
                for transform in self._transforms:
                    update = transform.on_client(update, private)
            changed.append(update)
        theta = torch.stack([update.theta for update in changed])
        items = [update.items for update in changed]
        return CohortUpdate.of(updates.clients, items, theta)

    def _encoded(
        self, updates: CohortUpdate, ctxs: Sequence[RoundContext]
    ) -> list[Payload]:
        budgets = [self._agreement.uplink_budget_of(ctx.sender) for ctx in ctxs]
        payloads = self._uplink.encode_cohort(updates, budgets, ctxs)
        for payload, budget in zip(payloads, budgets, strict=True):
            hold_to(budget, payload, self._uplink)
        for payload, theta, ctx in zip(payloads, updates.theta, ctxs, strict=True):
            self._agreement.put_network_change(payload, theta, ctx)
        return payloads

    def _sealed(
        self, payloads: Sequence[Payload], trained: Trained, round: int
    ) -> list[Message]:
        losses: list[float | None] = trained.losses.tolist()
        if not self._agreement.federation.report_loss:
            losses = [None] * len(losses)
        clients = trained.updates.clients.tolist()
        counts = trained.n_samples.tolist()
        if any(transform.hides_samples for transform in self._transforms):
            counts = [1] * len(counts)
        return [
            Message.of(
                payload,
                Header(Kind.UPDATE, round, client, round + 1, round, count, loss),
            )
            for payload, client, count, loss in zip(
                payloads, clients, counts, losses, strict=True
            )
        ]

    def _keep_lost(
        self,
        feedback: UplinkFeedback,
        updates: CohortUpdate,
        messages: Sequence[Message],
        ctxs: Sequence[RoundContext],
    ) -> None:
        """Decode what is sent, as the server will, and keep what is lost."""
        payloads = [message.payload for message in messages]
        decoded = self._uplink.decode_cohort(payloads, ctxs)
        for ctx, update, arrived in zip(ctxs, updates, decoded, strict=True):
            feedback.keep(ctx.sender, update, arrived)
