"""What the server takes in with secure aggregation: keys, shares, and a sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import SystemRandom

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import Compressor, RoundContext, RowUpdate
from recbole_fedras.errors import FederationError
from recbole_fedras.federation.masked import MaskedForm
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.server.intake import UNKNOWN, Intake, Refusal
from recbole_fedras.federation.settings import SecureAggregation
from recbole_fedras.secure import FEWEST
from recbole_fedras.secure.notes import pack_blobs, unpack_blobs
from recbole_fedras.secure.protocol import Public, SecureServer
from recbole_fedras.wire.message import Header, Kind, Message

AddSum = Callable[[RowUpdate, NDArray[np.float32], Tensor, int], None]


class SecureIntake(Intake):
    """The masked updates of one round; it can read their sum alone.

    Whoever is silent at one stage is not asked at the next. An update counts once it
    has come, even if its sender is silent afterwards. Single updates cannot be checked:
    neither norms nor what an update does to a row. Where so few are invited that a sum
    would tell each client's part, nobody is asked for more than keys, and none counts.
    Nor does anybody in a round that is ``lost``.

    Parameters
    ----------
    agreement : Agreement
    uplink : Compressor
    secure : SecureAggregation
    add_sum : callable
        ``Aggregator.add_sum``.
    ctx : RoundContext
        Of the round, with the downlink that all were sent, if there is one.
    invited : mapping of int to int
        As for the base class; all to this round.
    """

    kind = Kind.KEYS

    def __init__(
        self,
        agreement: Agreement,
        uplink: Compressor,
        secure: SecureAggregation,
        add_sum: AddSum,
        ctx: RoundContext,
        invited: Mapping[int, int],
    ) -> None:
        super().__init__(agreement, uplink, _none_alone, ctx.round, invited, _no_base)
        self._add_sum, self._ctx, self._n_invited = add_sum, ctx, len(invited)
        self._form = MaskedForm(agreement, uplink, secure.bound)
        self._n_words = self._form.n_words(ctx)
        self._talk = SecureServer(self._n_words, secure.neighbours, SystemRandom())

    def follow_up(self) -> Iterator[list[Message]]:
        """Ask for shares, for masked updates, and for what takes masks away."""
        talk = self._talk
        if self._n_invited < FEWEST:
            return
        if len(talk.public) < FEWEST:
            self.lost = f"{len(talk.public)} clients sent keys, of {FEWEST} needed"
            return
        talk.draw_graph()
        rosters = {client: talk.roster_of(client) for client in talk.public}
        yield self._ask(
            Kind.ROSTER,
            Kind.SHARES,
            {
                client: {other: b"".join(keys) for other, keys in roster.items()}
                for client, roster in rosters.items()
            },
        )
        notes = {client: talk.shares_for(client) for client in talk.dealers}
        yield self._ask(Kind.NOTES, Kind.UPDATE, notes)
        alive = {
            client: {other: b"" for other in notes[client] if other in talk.masked}
            for client in sorted(talk.masked)
        }
        yield self._ask(Kind.SURVIVORS, Kind.REVEALED, alive)

    def _ask(
        self, kind: Kind, answer: Kind, blobs: Mapping[int, Mapping[int, bytes]]
    ) -> list[Message]:
        """Make messages, and be ready for the one kind of answer."""
        self.kind, self._answered = answer, set()
        self._invited = dict.fromkeys(blobs, self._round)
        version = self._round + 1
        return [
            Message(
                Header(kind, self._round, client, version, self._round),
                pack_blobs(own),
            )
            for client, own in blobs.items()
        ]

    def _accept(self, message: Message) -> None:
        """Take note of an answer.

        Raises
        ------
        PayloadError
            If it is not of the form that it must have.
        """
        client, body, talk = message.header.client, message.body, self._talk
        if self.kind is Kind.KEYS:
            talk.note_keys(client, Public.from_bytes(body))
        elif self.kind is Kind.SHARES:
            talk.note_shares(client, unpack_blobs(body))
        elif self.kind is Kind.UPDATE:
            words = self._form.get(message.payload, self._n_words)
            talk.note_masked(client, words)
        else:
            talk.note_revealed(client, unpack_blobs(body))

    def finish(self) -> float | None:
        """Add the sum of all updates that have come, if masks can be taken away."""
        if self._talk.masked:
            try:
                total = self._talk.total()
            except FederationError as error:
                self.lost = str(error)
            else:
                self.counted = sorted(self._talk.masked)
                found = self._form.sum_of(total, self._ctx)
                self._add_sum(*found, len(self.counted))
        self.refusals += [Refusal(*fault) for fault in self._talk.faults]
        if self.lost:
            self.refusals.append(Refusal(UNKNOWN, self.lost))
        self.refusals.sort()
        return None


def _none_alone(client: int, update: RowUpdate, theta: Tensor) -> None:
    raise AssertionError("no update is seen alone")


def _no_base(client: int) -> Tensor:
    raise AssertionError("no update is decoded alone")
