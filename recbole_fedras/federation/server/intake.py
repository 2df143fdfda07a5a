"""What the server takes in: it checks each update, and combines them in fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from torch import Tensor

from recbole_fedras.compressor.base import Compressor, RowUpdate
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.numeric.parallel import mapper
from recbole_fedras.wire.message import Kind, Message
from recbole_fedras.wire.payload import PayloadError
from recbole_fedras.wire.transport import Answer

#: Bytes of updates that come before some are decoded, about: while clients in other
#: processes train, the server works on those that have answered.
WAITING_BYTES = 2**18


#: Of a message that does not say who sent it.
UNKNOWN = -1


class Refusal(NamedTuple):
    """A message that counted for nothing.

    Attributes
    ----------
    client : int
        The one that it says it is from; :data:`UNKNOWN` if it says nothing.
    reason : str
    """

    client: int
    reason: str

    def __str__(self) -> str:
        if self.client == UNKNOWN:
            return self.reason
        return f"client {self.client}: {self.reason}"


class Intake:
    """The updates of one round, from the first to the last.

    Updates are decoded and added by increasing client, whatever the order in which they
    arrive; those that come in order need not wait for the last. A bad one is refused:
    it costs its sender the round, and nobody else anything.

    Parameters
    ----------
    agreement : Agreement
    uplink : Compressor
    add : callable
        ``add(client, update, theta_change)`` counts a client's update, as decoded.
    round : int
    invited : mapping of int to int
        Clients that may answer, and the round that each was invited to.
    base_of : callable
        ``base_of(client)``: the table that its update changes.

    Attributes
    ----------
    refusals : list of Refusal
    counted : list of int
        Clients whose updates were added, increasing.
    lost : str
        Why nobody has counted, if masks of those who have answered could not be taken
        away.
    """

    #: What answers must be, at this time.
    kind = Kind.UPDATE

    def __init__(
        self,
        agreement: Agreement,
        uplink: Compressor,
        add: Callable[[int, RowUpdate, Tensor], None],
        round: int,
        invited: Mapping[int, int],
        base_of: Callable[[int], Tensor],
    ) -> None:
        self._agreement, self._uplink, self._base_of = agreement, uplink, base_of
        self._count, self._round = add, round
        self._due = sorted(invited, reverse=True)  # whose turn it is, the last first
        self._invited = invited
        self._waiting: dict[int, Message] = {}
        self._new_bytes = 0
        self._answered: set[int] = set()
        self._loss, self._n_samples, self._n_losses = 0.0, 0, 0
        self.refusals: list[Refusal] = []
        self.counted: list[int] = []
        self.lost = ""

    def take(self, answer: Answer) -> Message | None:
        """Take in an answer, or refuse it; return it, if it could be read."""
        message = self._read(answer)
        if message is None:
            return None
        client = message.header.client
        try:
            self._check(message, answer)
            self._accept(message)
        except PayloadError as error:
            self.refusals.append(Refusal(client, str(error)))
            return message
        self._answered.add(client)
        return message

    def follow_up(self) -> Iterator[list[Message]]:
        """Say what else clients are to be asked, one thing after the other: nothing.

        What comes is to be taken in before the next.
        """
        yield from ()

    def _accept(self, message: Message) -> None:
        self._waiting[message.header.client] = message
        self._new_bytes += len(message)
        if self._new_bytes > WAITING_BYTES:
            self._add(list(self._in_order()))
            self._new_bytes = 0

    def _read(self, answer: Answer) -> Message | None:
        """Parse the header; refuse what is no update, or larger than honest ones."""
        client = UNKNOWN
        try:
            message = Message.from_parts(answer.head, answer.body)
            client = message.header.client
            message.require_size(self._agreement.most_bytes)
            if message.header.kind is not self.kind:
                kind, wanted = message.header.kind.name, self.kind.name.lower()
                raise PayloadError(f"a message of kind {kind} is no {wanted}")
        except PayloadError as error:
            reason = f"from shard {answer.shard}: {error}"
            self.refusals.append(Refusal(client, reason))
            return None
        return message

    def finish(self) -> float | None:
        """Add all that have come; return the mean loss of a sample, if reported."""
        self._add([self._waiting.pop(client) for client in sorted(self._waiting)])
        self.refusals.sort()
        return self._loss / self._n_losses if self._n_losses else None

    def _check(self, message: Message, answer: Answer) -> None:
        """Refuse what is not the one answer of a client that was invited.

        Raises
        ------
        PayloadError
            That says why.
        """
        header = message.header
        if not header.n_samples:
            raise PayloadError("it rests on no samples")
        round = self._invited.get(header.client, self._round)
        if header.round != round:
            raise PayloadError(f"it is of round {header.round}, not {round}")
        if header.client not in self._invited:
            raise PayloadError("the client was not invited")
        if header.client in self._answered:
            raise PayloadError("the client has answered already")
        if answer.clients is not None and header.client not in answer.clients:
            raise PayloadError(f"shard {answer.shard} does not hold the client")
        if (header.base, header.version) != (round, round + 1):
            raise PayloadError(
                f"it leads from version {header.base} to {header.version}, not from "
                f"{round} to {round + 1}"
            )

    def _in_order(self) -> Iterator[Message]:
        """Take out the messages that no earlier client's can come before any more."""
        while self._due:
            client = self._due[-1]
            if client in self._waiting:
                yield self._waiting.pop(client)
            elif client not in self._answered:  # a refused one may answer yet
                return
            self._due.pop()

    def _add(self, messages: list[Message]) -> None:
        in_turn = mapper(self._uplink.threaded_decoding)(self._decoded, messages)
        for message, decoded in zip(messages, in_turn, strict=True):
            header = message.header
            if isinstance(decoded, PayloadError):
                self.refusals.append(Refusal(header.client, str(decoded)))
                continue
            self._count(header.client, *decoded)
            self.counted.append(header.client)
            if header.loss is not None and header.n_samples is not None:
                self._loss += header.loss
                self._n_losses += header.n_samples

    def _decoded(self, message: Message) -> tuple[RowUpdate, Tensor] | PayloadError:
        """Return what a message says, or what is wrong with it."""
        client = message.header.client
        base = self._base_of(client)
        ctx = self._agreement.context(message.header.round, client, base=base)
        try:
            theta = self._agreement.network_change(message.payload)
            update = self._uplink.decode(message.payload, ctx)
            self._require_bounded(update, theta)
        except PayloadError as error:
            return error
        return update, theta

    def _require_bounded(self, update: RowUpdate, theta: Tensor) -> None:
        """Refuse values that are not finite, or together beyond the published norm.

        Raises
        ------
        PayloadError
            That says which.
        """
        most = self._agreement.federation.max_update_norm
        values = [update.rows.numpy().ravel(), theta.numpy()]
        with np.errstate(over="ignore", invalid="ignore"):
            roughly = (
                sum(float(np.vdot(part, part)) for part in values if part.size) ** 0.5
            )
        if roughly <= most / 2:  # in float32: fast, and near enough for most updates
            return
        if not all(np.isfinite(part).all() for part in values):
            raise PayloadError("its values are not all finite")
        norm = sum(float(np.square(part, dtype=float).sum()) for part in values) ** 0.5
        if norm > most:
            raise PayloadError(f"its norm {norm:.3g} exceeds max_update_norm={most:g}")
