"""Clients of a shard that mask what they send; see ``secure.protocol``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from recbole_fedras.compressor.base import CohortUpdate, Compressor, RoundContext
from recbole_fedras.errors import PayloadError
from recbole_fedras.federation.masked import MaskedForm
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.settings import SecureAggregation
from recbole_fedras.secure.fixed_point import Words
from recbole_fedras.secure.notes import pack_blobs, unpack_blobs
from recbole_fedras.secure.protocol import Public, SecureClient
from recbole_fedras.wire.message import Header, Kind, Message

_ANSWERS = {
    Kind.ROSTER: Kind.SHARES,
    Kind.NOTES: Kind.UPDATE,
    Kind.SURVIVORS: Kind.REVEALED,
}


class Maskers:
    """What clients keep from their keys to the end of a round, and what they answer.

    One that cannot answer, as the server has asked it too early, twice, or with too few
    neighbours, is silent: nobody can make it tell what would unmask it.

    Parameters
    ----------
    agreement : Agreement
    uplink : Compressor
    secure : SecureAggregation
    """

    def __init__(
        self, agreement: Agreement, uplink: Compressor, secure: SecureAggregation
    ) -> None:
        self._form = MaskedForm(agreement, uplink, secure.bound)
        self._round = -1
        self._clients: dict[int, SecureClient] = {}
        self._words: dict[int, Words] = {}

    def begin(
        self, updates: CohortUpdate, ctxs: Sequence[RoundContext]
    ) -> list[Message]:
        """Keep what clients are to send; return their keys."""
        messages = []
        if self._round != ctxs[0].round:
            self._clients, self._words = {}, {}
        self._round = ctxs[0].round
        for index, ctx in enumerate(ctxs):
            client, theta = ctx.sender, updates.theta[index]
            self._words[client] = self._form.words(updates[index], theta, ctx)
            self._clients[client] = made = SecureClient(client)
            keys = b"".join(made.public)
            messages.append(Message(_header(Kind.KEYS, ctx.round, client), keys))
        return messages

    def answer(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Answer what the server asks of each client."""
        for message in messages:
            header = message.header
            if header.round != self._round or header.client not in self._clients:
                continue
            try:
                body = self._body(header.kind, header.client, message.body)
            except PayloadError:
                continue
            answers = _ANSWERS[header.kind]
            yield Message(_header(answers, header.round, header.client), body)

    def _body(self, kind: Kind, client: int, asked: bytes) -> bytes:
        own, blobs = self._clients[client], unpack_blobs(asked)
        if kind is Kind.ROSTER:
            roster = {other: Public.from_bytes(keys) for other, keys in blobs.items()}
            return pack_blobs(own.shares(roster))
        if kind is Kind.NOTES:
            masked = own.masked(self._words[client], blobs)
            return self._form.put(masked).to_bytes()
        return pack_blobs(own.reveal(blobs))


def _header(kind: Kind, round: int, client: int) -> Header:
    return Header(kind, round, client, round + 1, round, n_samples=1)
