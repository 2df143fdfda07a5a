"""The server's half of a round: it invites, receives and closes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import Compressor, RowUpdate, empty_update
from recbole_fedras.errors import ConfigError, FederationError
from recbole_fedras.federation.protocol import Agreement, Ints, receipt
from recbole_fedras.federation.server.aggregation import Aggregator
from recbole_fedras.federation.server.downlink import DownlinkPolicy
from recbole_fedras.federation.server.intake import Intake, Refusal
from recbole_fedras.federation.server.selection import (
    cohort_size,
    sample_cohort,
    secret_cohort,
    select_cohort,
)
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.federation.transforms import SharedUpdate, Transform
from recbole_fedras.numeric.stopwatch import Stopwatch
from recbole_fedras.secure import FEWEST
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload
from recbole_fedras.wire.transport import Answer

#: Rounds in a row whose masks cannot be taken away: the settings must be wrong.
MOST_LOST = 3


@dataclass(frozen=True, slots=True)
class Closed:
    """What a round came to, as the server sees it.

    Attributes
    ----------
    counted : ndarray of int64, shape (n_counted,)
        Clients whose updates are in the aggregate.
    n_invited : int
    refusals : list of Refusal
    loss : float or None
        Of a training sample, the mean; None if no client reports it.
    lost : str
        Why nobody counts, if masks could not be taken away.
    """

    counted: Ints
    n_invited: int
    refusals: list[Refusal]
    loss: float | None
    lost: str


class Server:
    """Holds the exact shared parameters and decides all: whom to invite, what to send.

    A round is :meth:`invite`, :meth:`receive` for each answer, :meth:`close`, and then
    :meth:`commit`, or :meth:`rollback` if anything has failed. It never sees a
    client's interactions, private rows, or more of an update than its message says.

    Parameters
    ----------
    agreement : Agreement
    parameters : SharedParameters
    policy : DownlinkPolicy
        What participants are sent.
    uplink : Compressor
        Decodes updates.
    aggregator : Aggregator
    eligible : ndarray of int64
        Clients that have something to train on.
    transforms : sequence of Transform
        Applied to what arrives and to each aggregate, in their order.

    Attributes
    ----------
    eligible : ndarray of int64
    parameters : SharedParameters
    policy : DownlinkPolicy
    aggregator : Aggregator
    introduction : Payload or None
        What each client is sent once, before its first downlink.
    invitations : ndarray of int64, shape (n_clients,)
        How often each was invited, at most. Rounds that failed count too: what clients
        have told cannot be taken back.
    begun : int
        Rounds begun, those that failed among them.
    at_begin : callable or None
        ``at_begin(begun)`` is called before anybody is invited.
    guests : callable or None
        ``guests(round)``: which clients can be invited, shape (n_clients,), and how
        many are, if there are so many; None: all, and ``cohort_size``.
    cohort_size : int
        Updates that a round is to rest on.
    seconds : Stopwatch

    Examples
    --------
    >>> from recbole_fedras.compressor.base import RowUpdate, raw_payload
    >>> from recbole_fedras.compressor.none import NoCompression
    >>> from recbole_fedras.federation.server.aggregation import FedAvg
    >>> from recbole_fedras.federation.server.broadcast import Broadcast
    >>> from recbole_fedras.federation.settings import Federation
    >>> federation, table = Federation(1, 1.0, (0.0,), "fedavg"), torch.zeros(3, 1)
    >>> agreement = Agreement.of(federation, 2, table, 0, *2 * [NoCompression()])
    >>> parameters = SharedParameters(table, torch.zeros(0), federation.optimization)
    >>> policy = Broadcast(agreement, NoCompression(), parameters)
    >>> eligible, mean = np.arange(2), FedAvg()
    >>> server = Server(agreement, parameters, policy, NoCompression(), mean, eligible)
    >>> [(one.header.kind.name, one.header.client) for one in server.invite()]
    [('DOWNLINK', 0), ('DOWNLINK', 1)]
    >>> change = raw_payload(RowUpdate(torch.tensor([2]), torch.ones(1, 1)), n_items=3)
    >>> header = Header(Kind.UPDATE, round=0, client=1, version=1, base=0, n_samples=5)
    >>> message = Message.of(change, header)
    >>> server.receive(Answer(message.head, message.body)) == message
    True
    >>> server.close().counted.tolist()  # client 0 is silent
    [1]
    >>> server.commit()
    >>> server.round, server.parameters.item_table.flatten().tolist()
    (1, [0.0, 0.0, 1.0])
    """

    def __init__(
        self,
        agreement: Agreement,
        parameters: SharedParameters,
        policy: DownlinkPolicy,
        uplink: Compressor,
        aggregator: Aggregator,
        eligible: Ints,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self._agreement, self.parameters = agreement, parameters
        self.policy, self._uplink, self.aggregator = policy, uplink, aggregator
        self.eligible = eligible
        fraction = agreement.federation.client_fraction
        self.cohort_size = cohort_size(len(eligible), fraction)
        self._require_enough()
        self._introduced = np.zeros(agreement.n_clients, bool)
        self.invitations = np.zeros(agreement.n_clients, np.int64)
        self.begun = 0
        self.at_begin: Callable[[int], None] | None = None
        self._transforms = transforms
        self._states = self._states_of_parts()
        self.introduction: Payload | None = None
        self.guests: Callable[[int], tuple[NDArray[np.bool_], int]] | None = None
        # Who may answer, and the round that each was invited to: in force, to be.
        self._at_work: dict[int, int] = {}
        self._invited: dict[int, int] = {}
        self._n_lost = 0
        self.seconds = Stopwatch()

    def _require_enough(self) -> None:
        """Refuse cohorts that masks cannot hide anybody in.

        Raises
        ------
        ConfigError
        """
        federation = self._agreement.federation
        few = federation.sampling == "fixed" and self.cohort_size < FEWEST
        if federation.secure is not None and few:
            raise ConfigError(
                f"client_fraction={federation.client_fraction} of {len(self.eligible)} "
                f"clients selects {self.cohort_size}; secure_aggregation=True needs "
                f"{FEWEST}, as otherwise a sum tells each client's part"
            )

    @property
    def round(self) -> int:
        """Rounds completed; the version of the shared parameters."""
        return self.parameters.round

    def invite(self) -> Iterator[Message]:
        """Draw a cohort; make what brings it up to date, client by client."""
        self.begun += 1
        if self.at_begin is not None:
            self.at_begin(self.begun)
        round, cohort = self.round, self._draw_cohort()
        self.invitations[cohort] += 1
        self._invited = self._at_work | dict.fromkeys(cohort.tolist(), round)
        self._intake = self._make_intake()
        expected = len(self.eligible) * self._agreement.federation.client_fraction
        ctx = self._agreement.context(round)
        self.aggregator.expect(ctx, expected, self._agreement.n_theta)
        self.aggregator.begin(self.parameters.item_table)
        introduction = self._sealed_introduction()
        newcomers = set(cohort[~self._introduced[cohort]].tolist())
        deliveries = self.policy.deliver(cohort.tolist())
        while (message := self._timed_next(deliveries)) is not None:
            client = message.header.client
            if introduction is not None and client in newcomers:
                newcomers.remove(client)
                yield introduction.to(client)
            yield message

    def _make_intake(self) -> Intake:
        agreement, round, invited = self._agreement, self.round, self._invited
        if (secure := agreement.federation.secure) is not None:
            # What it needs is there with the extra privacy only.
            from recbole_fedras.federation.server.secure import SecureIntake

            add, sent = self.aggregator.add_sum, self.policy.published
            ctx = replace(agreement.context(round), downlink=sent)
            return SecureIntake(agreement, self._uplink, secure, add, ctx, invited)
        mirror_of, uplink = self.policy.mirror_of, self._uplink
        return Intake(agreement, uplink, self._count, round, invited, mirror_of)

    def follow_up(self) -> Iterator[list[Message]]:
        """Say what else clients are to be asked, one thing after the other.

        Nothing, but with secure aggregation. What comes is received before the next.
        """
        return self._intake.follow_up()

    def _draw_cohort(self) -> Ints:
        """Draw whom to invite, of those who are there."""
        federation, round = self._agreement.federation, self.round
        there, size = self.eligible, self.cohort_size
        if self.guests is not None:
            free, size = self.guests(round)
            there = there[free[there]]
        if federation.sampling == "fixed":
            return select_cohort(there, min(size, len(there)), federation.seed, round)
        if self.aggregator.secret_cohorts:
            return secret_cohort(there, federation.client_fraction)
        return sample_cohort(there, federation.client_fraction, federation.seed, round)

    def _sealed_introduction(self) -> Message | None:
        if self.introduction is None:
            return None
        header = Header(Kind.INTRODUCTION, self.round, 0, self.round, None)
        return Message.of(self.introduction, header)

    def _timed_next(self, deliveries: Iterator[Message]) -> Message | None:
        with self.seconds("compression"):
            return next(deliveries, None)

    def receive(self, answer: Answer) -> Message | None:
        """Take in an answer, at any time and in any order until the round is closed.

        Returns
        -------
        Message or None
            None if it is too large to be read, or no message.
        """
        with self.seconds("aggregation"):
            return self._intake.take(answer)

    def _count(self, client: int, update: RowUpdate, theta_change: Tensor) -> None:
        """Add a client's update, after what transforms make of it, by its weight."""
        if self._transforms:
            ctx = self._agreement.context(self.round, client)
            arrived = SharedUpdate(update, theta_change)
            for transform in self._transforms:
                arrived = transform.on_arrival(arrived, ctx)
            update, theta_change = arrived
        if staleness := self.round - self._invited[client]:
            weight = self._agreement.federation.weight(staleness)
            update = RowUpdate(update.ids, weight * update.rows)
            theta_change = weight * theta_change
        self.aggregator.add(client, update, theta_change)

    def close(self) -> Closed:
        """Combine what has come, step, and publish; who did not answer is left out.

        Without any update the server steps by zero, and publishes that; unless the
        aggregator has something to say of such a round.

        Raises
        ------
        FederationError
            If it is one of several rounds in a row that are lost behind masks.
        """
        with self.seconds("aggregation"):
            loss = self._intake.finish()
            self._require_found(self._intake.lost)
            counted = np.array(self._intake.counted, np.int64)
            some = len(counted) or self.aggregator.empty_rounds
            update = self._combined() if some else self._nothing()
            change = self.parameters.step(*update)
        with self.seconds("compression"):
            self.policy.publish(change)
            self.policy.prepare()
        self._counted, self._next_states = counted, self._states_of_parts()
        refusals, lost = self._intake.refusals, self._intake.lost
        return Closed(counted, len(self._invited), refusals, loss, lost)

    def _require_found(self, lost: str) -> None:
        if lost and self._n_lost + 1 == MOST_LOST:
            raise FederationError(
                f"round {self.round}: masks could not be taken away, nor in the "
                f"{self._n_lost} rounds before ({lost}); raise secure_neighbours or "
                "client_fraction, so that enough are left when some fall silent"
            )

    def _combined(self) -> SharedUpdate:
        update = SharedUpdate(*self.aggregator.result())
        ctx = self._agreement.context(self.round)
        for transform in self._transforms:
            update = transform.on_aggregate(update, ctx)
        return update

    def _nothing(self) -> SharedUpdate:
        theta = torch.zeros(self._agreement.n_theta)
        return SharedUpdate(empty_update(self._agreement.dim), theta)

    def receipts(self) -> list[Message]:
        """Make the messages by which clients learn that they have counted."""
        counted = self._counted.tolist()
        rounds = {self._invited[client] for client in counted}
        of_round = {round: receipt(round, 0) for round in rounds}  # the same for many
        return [of_round[self._invited[client]].to(client) for client in counted]

    def _parts(self) -> list[Aggregator | Transform]:
        return [self.aggregator, *self._transforms]

    def _states_of_parts(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self._parts()]

    def _restore_parts(self) -> None:
        for part, state in zip(self._parts(), self._states, strict=True):
            part.load_state_dict(state)

    def commit(self) -> None:
        """Put the closed round into force; nothing here can fail."""
        self._n_lost = self._n_lost + 1 if self._intake.lost else 0
        self._states = self._next_states
        self._introduced[self._counted] = True
        self.policy.commit(self._counted)
        counted = set(self._counted.tolist())
        for client in counted:
            if self._invited[client] < self.round - 1:  # it holds what it was sent then
                self.policy.version_of[client] = self._invited[client]
        self.parameters.commit()
        oldest = self.round - self._agreement.federation.staleness_window
        self._at_work = {
            client: round
            for client, round in self._invited.items()
            if round >= oldest and client not in counted
        }

    def rollback(self) -> None:
        """Return to the state before the round."""
        self.parameters.rollback()
        self.policy.rollback()
        self._restore_parts()

    def recall(self, begun: int) -> None:
        """Learn how many rounds began in all, if some are not in this state.

        Anybody may have been invited to them.
        """
        self.invitations += begun - self.begun
        self.begun = begun

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next round depends on."""
        introduction = self.introduction
        return {
            "parameters": self.parameters.state_dict(),
            "policy": self.policy.state_dict(),
            "parts": self._states,
            "introduced": torch.from_numpy(self._introduced),
            "invitations": torch.from_numpy(self.invitations),
            "begun": self.begun,
            "introduction": introduction.to_bytes() if introduction else None,
        } | ({"at_work": self._at_work} if self._at_work else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.parameters.load_state_dict(state["parameters"])
        self.policy.load_state_dict(state["policy"])
        self._states = state["parts"]
        self._restore_parts()
        self._introduced[:] = state["introduced"].numpy()
        self.invitations[:] = state["invitations"].numpy()
        self.begun = state["begun"]
        self._at_work = state.get("at_work", {})
        if state["introduction"] is not None:
            self.introduction = Payload.from_bytes(state["introduction"])
