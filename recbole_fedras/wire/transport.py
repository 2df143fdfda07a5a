"""What carries messages between server and shards: memory, or links to processes."""

from __future__ import annotations

from collections.abc import (
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from logging import getLogger
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recbole_fedras import errors
from recbole_fedras.errors import AbsentError, FederationError, PayloadError
from recbole_fedras.wire.frame import Step, pack, unpack
from recbole_fedras.wire.links import Links
from recbole_fedras.wire.message import Message

#: Bytes that an answer may have besides updates: what a shard says of itself.
_MOST_OF_ITSELF = 2**16
_DAY = 86400.0  # seconds


class Answer(NamedTuple):
    """Bytes that came from a shard, unread: they may hold anything.

    Attributes
    ----------
    head, body : bytes
        Of a message.
    shard : str
        Whom they came from, as the transport knows.
    clients : container of int or None
        Clients that this shard may answer for; None: all.
    """

    head: bytes
    body: bytes
    shard: str = ""
    clients: Container[int] | None = None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.head) + len(self.body)


class Participant(Protocol):
    """The shard at the other end, as far as a transport knows it."""

    def participate(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Answer invitations."""

    def settle(self, receipts: Iterable[Message]) -> None:
        """Learn which answers counted; none of those before it that are left out."""


class Transport(Protocol):
    """Carries messages, each to the shard that holds its client, and answers back."""

    def exchange(
        self, messages: Iterable[Message], deadline: float | None = None
    ) -> Iterable[Answer]:
        """Deliver invitations; yield answers as they come, in any order.

        Whoever does not answer, within ``deadline`` seconds if there is one, is missing
        from them. Messages to one client follow each other.
        """

    def settle(self, receipts: Iterable[Message]) -> None:
        """Deliver receipts, and so tell every shard that the round has ended.

        They must arrive before anything of the next round.
        """


class MemoryTransport:
    """One shard in this process. It is handed bytes, like any other.

    Parameters
    ----------
    shard : Participant

    Examples
    --------
    >>> from recbole_fedras.wire.message import Header, Kind
    >>> from recbole_fedras.wire.payload import Payload
    >>> class Echo:
    ...     def participate(self, messages):
    ...         return messages
    >>> invitation = Message.of(Payload(), Header(Kind.DOWNLINK, 0, 7, 0, 0))
    >>> (answer,) = MemoryTransport(Echo()).exchange([invitation])
    >>> Message.from_parts(answer.head, answer.body).header.client
    7
    """

    def __init__(self, shard: Participant) -> None:
        self._shard = shard

    def exchange(
        self, messages: Iterable[Message], deadline: float | None = None
    ) -> Iterator[Answer]:
        """Deliver one after the other; answers come while invitations are made."""
        for message in self._shard.participate(map(Message.received, messages)):
            yield Answer(message.head, message.body)

    def settle(self, receipts: Iterable[Message]) -> None:
        """Deliver receipts."""
        self._shard.settle(map(Message.received, receipts))


#: Makes what leads shared tables from versions, one a tier, to the newest.
Newest = Callable[[Sequence[int]], Sequence[Message]]


class LinkTransport:
    """Shards in other processes, each behind a link; see ``client.node.Node``.

    What needs no answer waits for the next request to its shard, and is sent again
    until one is answered: so a shard learns what has counted before anything else,
    however much was lost in between.

    Parameters
    ----------
    links : Links
    clients_of : mapping of str to ndarray of int64
        Clients of each shard, by its name.
    strict : bool
        Whether a shard that fails or is lost is an error, as in a simulation; its
        answers may then come in several frames. Otherwise its clients are silent in
        that round, all of them, and the log says why.
    about : callable, optional
        Returns the run's name, its server's term and the round, which shards check;
        None: they are of this run alone.
    at_least : int
        Shards that must be there: those that are asked must answer.
    most_bytes : int, optional
        ``Agreement.most_bytes``: an answer that is larger than as much from each client
        invited is not read. None: shards are trusted.

    Attributes
    ----------
    seconds : dict of str to float
        By phase: of the slowest shard, since it was last emptied.
    carried : dict of str to int
        Bytes of all requests and answers: what many clients of a shard are sent alike
        is carried once.
    """

    def __init__(
        self,
        links: Links,
        clients_of: Mapping[str, NDArray[np.int64]],
        strict: bool = False,
        about: Callable[[], tuple[str, int, int]] | None = None,
        at_least: int = 0,
        most_bytes: int | None = None,
    ) -> None:
        self._links, self._strict = links, strict
        self._about, self._most_bytes = about, most_bytes
        self._at_least = len(clients_of) if strict else at_least
        self._clients = {name: set(own.tolist()) for name, own in clients_of.items()}
        self._shard_of_client = {
            client: name for name, own in self._clients.items() for client in own
        }
        self._due: dict[str, list[Step]] = {name: [] for name in self._clients}
        self._versions: dict[str, list[int]] = {}
        self.seconds: dict[str, float] = {}
        self.carried = {"requests": 0, "answers": 0}
        self._reasons: dict[str, str] = {}

    def exchange(
        self, messages: Iterable[Message], deadline: float | None = None
    ) -> Iterator[Answer]:
        """Send every shard its invitations; yield what comes, first come first."""
        invitations = {
            name: invited
            for name, invited in self._by_shard(messages).items()
            if invited
        }
        requests = {
            name: [Step.of("participate", invited)]
            for name, invited in invitations.items()
        }
        n_invited = {
            name: len({message.header.client for message in invited})
            for name, invited in invitations.items()
        }
        for name, step in self._ask(requests, deadline, n_invited):
            for head, body in step.messages if step.what == "answers" else ():
                yield Answer(head, body, name, self._clients[name])

    def settle(self, receipts: Iterable[Message]) -> None:
        """Let the next request to each shard begin with the receipts of its clients."""
        for name, counted in self._by_shard(receipts).items():
            step = Step.of("settle", counted)
            if self._due[name][-1:] != [step]:  # that nothing has counted, once
                self._due[name].append(step)

    def note(self, what: str, value: Any, newest: Newest | None = None) -> None:
        """Let the next request to each shard begin with something that may come twice.

        It needs no answer, and so no exchange of its own. It takes the place of what
        was noted earlier under this name, and has not been sent.

        Parameters
        ----------
        what : str
            The step.
        value : object
            What it takes.
        newest : callable, optional
            ``DownlinkPolicy.newest``: bring shared tables up to date before.
        """
        for name, due in self._due.items():
            replaced = {what} if newest is None else {what, "refresh"}
            due[:] = [step for step in due if step.what not in replaced]
            if newest and (missed := newest(self._versions.get(name, ()))):
                due.append(Step.of("refresh", missed))
            due.append(Step(what, value=value))

    def state_dict(self) -> dict[str, Any]:
        """Return what shards still have to learn, and what has been carried."""
        due = {name: pack(steps) for name, steps in self._due.items()}
        return {"due": due, "carried": dict(self.carried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._due = {name: unpack(data) for name, data in state["due"].items()}
        self.carried.update(state["carried"])

    def ask_each(
        self,
        what: str,
        value: Any = None,
        newest: Newest | None = None,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """Ask every shard for something; return what those that answer say.

        Parameters
        ----------
        what : str
            The step.
        value : object
            What it takes.
        newest : callable, optional
            ``DownlinkPolicy.newest``: bring shared tables up to date before.
        deadline : float, optional
            Seconds that answers may take.
        """
        requests = {
            name: [Step(what, value=value)]
            for name in self._clients
            if name in self._links.names()
        }
        if newest is not None:
            for name, steps in requests.items():
                held = self._versions.get(name, ())
                steps.insert(0, Step.of("refresh", newest(held)))
        return {
            name: step.value
            for name, step in self._ask(requests, deadline)
            if step.what == what
        }

    def tell(self, what: str, value_of: Mapping[str, Any]) -> None:
        """Have shards do something, each with a value of its own."""
        steps = {name: [Step(what, value=value)] for name, value in value_of.items()}
        for _ in self._ask(steps):
            pass

    def close(self) -> None:
        """Close the links."""
        self._links.close()

    def _ask(
        self,
        requests: Mapping[str, list[Step]],
        deadline: float | None = None,
        n_invited: Mapping[str, int] = MappingProxyType({}),
    ) -> Iterator[tuple[str, Step]]:
        """Send requests behind what is due; yield shards and steps of their answers."""
        n_due = {name: len(self._due[name]) for name in requests}
        about = [Step("run", value=self._about())] if self._about else []
        frames = {
            name: pack([*about, *self._due[name], *steps])
            for name, steps in requests.items()
        }
        self.carried["requests"] += sum(map(len, frames.values()))
        missing, self._reasons = set(requests), {}
        for name, data in self._links.ask(frames, deadline):
            self.carried["answers"] += len(data)
            if name not in missing:
                continue
            steps = self._understood(name, data, n_invited.get(name, 0))
            if any(step.what == "held" for step in steps):
                missing.discard(name)
                del self._due[name][: n_due[name]]
            yield from ((name, step) for step in steps)
        if len(requests) - len(missing) < self._at_least:
            self._require_enough(missing)

    def _require_enough(self, missing: Set[str]) -> None:
        """Raise an error if too few shards are there; one that was not asked may be.

        Raises
        ------
        AbsentError
            If they are silent.
        FederationError
            If one has failed.
        """
        there = self._clients.keys() & set(self._links.names()) - missing
        if len(there) >= self._at_least:
            return
        for name, reason in self._reasons.items():
            raise FederationError(f"shard {name} failed: {reason}")
        absent = ", ".join(sorted(self._clients.keys() - there))
        raise AbsentError(
            f"shard {absent} does not answer"
            + (": its process has died" if self._strict else "")
        )

    def _understood(self, name: str, data: bytes, n_invited: int) -> list[Step]:
        """Read a frame, and take note of what a shard says of itself.

        Returns
        -------
        list of Step
            What came of the request; the step ``held`` ends it. Nothing of a shard that
            has failed. Shards that are not trusted have one frame to say all.
        """
        try:
            self._require_size(len(data), n_invited)
            steps = unpack(data)
            by_name = {step.what: step.value for step in steps}
            if "failed" not in by_name:
                if "held" in by_name or not self._strict:
                    self._note(name, by_name.get("held"))
                if sum(len(step.messages) for step in steps) > n_invited:
                    raise PayloadError("it answers more often than it was asked")
                return steps
            reason = by_name["failed"]
            if not (type(reason) is list and len(reason) == 3):
                raise PayloadError("it does not say what has failed")
        except PayloadError as error:
            reason = ["PayloadError", str(error), ""]
        self._failed(name, *map(str, reason))
        return []

    def _require_size(self, size: int, n_invited: int) -> None:
        """Refuse an answer that is larger than any honest one."""
        if self._most_bytes is not None:
            most = _MOST_OF_ITSELF + n_invited * self._most_bytes
            if size > most:
                raise PayloadError(f"{size} bytes, of at most {most}")

    def _note(self, name: str, held: Any) -> None:
        """Take note of versions, and of seconds, of which none is more than a day."""
        try:
            versions, seconds = held
            if any(type(version) is not int for version in versions):
                raise TypeError("a version is a number")
            self._versions[name] = versions
            for phase, taken in seconds.items():
                if 0 < float(taken) < _DAY:
                    slowest = max(self.seconds.get(str(phase), 0.0), float(taken))
                    self.seconds[str(phase)] = slowest
        except (TypeError, ValueError, AttributeError) as error:
            raise PayloadError(f"what it says it holds is {held!r:.99}") from error

    def _failed(self, name: str, kind: str, text: str, trace: str) -> None:
        """Raise what a shard failed with, if that is an error; else log it.

        Raises
        ------
        FederationError, NonFiniteError, ...
            Of ours, as the shard raised it.
        RuntimeError
            With the traceback of a bug.
        """
        if not self._strict:
            self._reasons[name] = f"{kind}: {text}"[:300]
            getLogger(__name__).warning(
                "shard %s failed: %.300s: %.300s", name, kind, text
            )
            return
        error = getattr(errors, kind, None)
        if error is None:
            raise RuntimeError(f"shard {name} failed\n{trace}")
        raise error(text)

    def _by_shard(self, messages: Iterable[Message]) -> dict[str, list[Message]]:
        by_shard: dict[str, list[Message]] = {name: [] for name in self._clients}
        for message in messages:
            by_shard[self._shard_of_client[message.header.client]].append(message)
        return by_shard
