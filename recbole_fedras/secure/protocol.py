"""The sum of masked words: who says what to whom, after Bonawitz et al."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple

import numpy as np

from recbole_fedras.errors import FederationError, PayloadError
from recbole_fedras.secure import FEWEST, keys
from recbole_fedras.secure.fixed_point import Words
from recbole_fedras.secure.keys import KEY_BYTES, SEED_BYTES, KeyPair

_SEALING, _MASKING, _ALONE = b"seal", b"pairwise mask", b"mask of one's own"
_COMMITMENT = b"commitment to a seed"

#: Any key pair: who can agree on nothing with it can with nobody.
_PROBE = KeyPair(bytes(SEED_BYTES))


class Public(NamedTuple):
    """What everybody may know of a client.

    Attributes
    ----------
    sealing, masking : bytes
        Public keys: of notes to it, and of masks that it shares with another.
    alone : bytes
        By which the seed of its own mask is known again; it does not tell the seed.
    """

    sealing: bytes
    masking: bytes
    alone: bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> Public:
        """Read what stands one behind the other.

        Raises
        ------
        PayloadError
            If that has another length.
        """
        if len(data) != len(cls._fields) * KEY_BYTES:
            raise PayloadError("its public keys have another length")
        return cls(
            *(data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES))
        )


def threshold(n_neighbours: int) -> int:
    """Return how many shares restore a seed: those of more than half of all."""
    return n_neighbours // 2 + 1


class Graph:
    """Who shares masks with whom: each with its k nearest on a ring drawn at random.

    Source: Bell, Bonawitz, Gascon, Lepoint and Raykova, "Secure Single-Server
    Aggregation with (Poly)Logarithmic Overhead" (CCS 2020), of which only
    implementations and accounts were read. With k at least n - 1 all do, as in
    Bonawitz et al.

    Parameters
    ----------
    ring : sequence of int
        Clients, in random order.
    n_neighbours : int
        Rounded up to an even number, where not all are neighbours.

    Raises
    ------
    FederationError
        If there are fewer than three clients.
    """

    def __init__(self, ring: Sequence[int], n_neighbours: int) -> None:
        n = len(ring)
        if n < FEWEST:
            raise FederationError(
                f"{n} clients take part; secure aggregation needs three, as otherwise "
                "a sum tells each client's part"
            )
        reach = -(-n_neighbours // 2)
        distances = [*range(1, reach + 1), *range(n - reach, n)]
        if 2 * reach >= n - 1:
            distances = list(range(1, n))
        self._of = {
            client: sorted(ring[(place + distance) % n] for distance in distances)
            for place, client in enumerate(ring)
        }

    def of(self, client: int) -> list[int]:
        """Return a client's neighbours, increasing."""
        return self._of[client]


class SecureClient:
    """One client in one round: it masks its words, and helps to take masks away.

    Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
    Machine Learning" (CCS 2017), against a server and clients who keep to the protocol
    and are curious; of the paper only accounts and implementations were read. With each
    neighbour it shares a mask, which one adds and the other takes away; one more is its
    own. Seeds of both are shared out among neighbours: the first is told to the server
    if the client has dropped out, the second if it has not, never both.

    **Departures**: signatures and the round that checks consistency, against servers
    who lie, are left out. A private key follows from a seed of 16 bytes. With its keys
    a client sends what the other seed is known again by, so that a neighbour's wrong
    share is found out.

    Parameters
    ----------
    client : int

    Examples
    --------
    Four clients; the second masks nothing, as it has dropped out by then:

    >>> clients = [SecureClient(number) for number in range(4)]
    >>> server = SecureServer(n_words=2, n_neighbours=3, rng=Random(1))
    >>> for client in clients:
    ...     server.note_keys(client.client, client.public)
    >>> server.draw_graph()
    >>> for client in clients:
    ...     roster = server.roster_of(client.client)
    ...     server.note_shares(client.client, client.shares(roster))
    >>> alive = [clients[0], clients[2], clients[3]]
    >>> for client in alive:
    ...     words = np.array([1, 2], np.uint32)
    ...     masked = client.masked(words, server.shares_for(client.client))
    ...     server.note_masked(client.client, masked)
    >>> for client in alive:
    ...     server.note_revealed(client.client, client.reveal(server.masked))
    >>> server.total().tolist()
    [3, 6]
    """

    def __init__(self, client: int) -> None:
        self.client = client
        self._masking_seed, self._own_seed = keys.new_seed(), keys.new_seed()
        self._sealing = KeyPair(keys.new_seed())
        self._masking = KeyPair(self._masking_seed)
        alone = keys.derived(self._own_seed, _COMMITMENT)
        self.public = Public(self._sealing.public, self._masking.public, alone)
        self._roster: Mapping[int, Public] = {}
        self._kept: dict[int, bytes | None] = {}
        self._threshold = 0

    def shares(self, roster: Mapping[int, Public]) -> dict[int, bytes]:
        """Return a sealed note to each neighbour: its shares of both seeds.

        Raises
        ------
        PayloadError
            If there are too few neighbours, or it was asked before.
        """
        if self._roster or len(roster) < 2 or self.client in roster:
            raise PayloadError(f"{len(roster)} neighbours, or asked twice")
        self._roster, self._threshold = roster, threshold(len(roster))
        parts = zip(
            keys.share(self._masking_seed, self._threshold, len(roster)),
            keys.share(self._own_seed, self._threshold, len(roster)),
            strict=True,
        )
        return {
            other: keys.seal(
                self._note_key(other, self.client, other),
                masking + alone,
                _about(self.client, other),
            )
            for other, (masking, alone) in zip(sorted(roster), parts, strict=True)
        }

    def masked(self, words: Words, notes: Mapping[int, bytes]) -> Words:
        """Return words with all masks; neighbours without a note have dropped out.

        A note that cannot be read is missed when masks are taken away, not before: else
        whoever sends one would silence those that it is to.

        Raises
        ------
        PayloadError
            If too few neighbours are left, or it was asked before.
        """
        known = notes.keys() <= self._roster.keys()
        if self._kept or not known or len(notes) < self._threshold:
            raise PayloadError(f"notes of {len(notes)}, of {self._threshold} needed")
        for other, sealed in notes.items():
            key = self._note_key(other, other, self.client)
            self._kept[other] = keys.unseal(key, sealed, _about(other, self.client))
        total = words + keys.mask(keys.derived(self._own_seed, _ALONE), len(words))
        for other in notes:
            total += self._shared_mask(other, len(words))
        return total

    def _shared_mask(self, other: int, n: int) -> Words:
        key = self._masking.agree(self._roster[other].masking, _MASKING)
        found = keys.mask(key, n)
        return found if self.client < other else -found

    def _note_key(self, other: int, sender: int, receiver: int) -> bytes:
        """Return a key of notes between the two, another one for each direction."""
        purpose = _SEALING + _about(sender, receiver)
        return self._sealing.agree(self._roster[other].sealing, purpose)

    def reveal(self, survivors: Iterable[int]) -> dict[int, bytes]:
        """Return a share for each neighbour whose note could be read, only once.

        It is of one of its seeds.

        Parameters
        ----------
        survivors : iterable of int
            Clients whose masked words have arrived.

        Raises
        ------
        PayloadError
            If it was asked before, or too few have survived.
        """
        alive = set(survivors) & self._kept.keys()
        if not alive or len(alive) < self._threshold:
            raise PayloadError(f"{len(alive)} survivors, of {self._threshold} needed")
        shares = {
            other: part[SEED_BYTES:] if other in alive else part[:SEED_BYTES]
            for other, part in self._kept.items()
            if part is not None
        }
        self._kept = {}
        return shares


class SecureServer:
    """The server in one round: it learns the sum, and of nobody alone.

    Parameters
    ----------
    n_words : int
        Of each client.
    n_neighbours : int
        Of each client.
    rng : Random
        Draws the ring of neighbours, which no client may choose: a ``SystemRandom``.

    Attributes
    ----------
    public : dict of int to Public
        Of clients who have sent keys.
    masked : dict of int to ndarray of uint32
        Words as they have arrived.
    faults : list of tuple of int and str
        Clients whose shares were wrong, and of whom.
    """

    def __init__(self, n_words: int, n_neighbours: int, rng: Random) -> None:
        self._n_words, self._n_neighbours, self._rng = n_words, n_neighbours, rng
        self.faults: list[tuple[int, str]] = []
        self.public: dict[int, Public] = {}
        self._notes: dict[int, dict[int, bytes]] = {}
        self.masked: dict[int, Words] = {}
        self._revealed: dict[int, Mapping[int, bytes]] = {}

    def note_keys(self, client: int, public: Public) -> None:
        """Take a client's public keys.

        Raises
        ------
        PayloadError
            If one is none: what neighbours would agree on with such a key is known to
            everybody, and nobody could take its mask away.
        """
        for key in (public.sealing, public.masking):
            _PROBE.agree(key, _MASKING)
        self.public[client] = public

    def draw_graph(self) -> None:
        """Draw who shares masks with whom, of those who have sent keys."""
        ring = self._rng.sample(sorted(self.public), len(self.public))
        self._graph = Graph(ring, self._n_neighbours)

    def roster_of(self, client: int) -> dict[int, Public]:
        """Return the public keys of a client's neighbours."""
        return {other: self.public[other] for other in self._graph.of(client)}

    def note_shares(self, client: int, notes: Mapping[int, bytes]) -> None:
        """Take a client's notes to its neighbours.

        Raises
        ------
        PayloadError
            If they are not to each of them.
        """
        if sorted(notes) != self._graph.of(client):
            raise PayloadError("its notes are not to each of its neighbours")
        self._notes[client] = dict(notes)

    @property
    def dealers(self) -> list[int]:
        """Clients who have sent notes and may mask, increasing."""
        return sorted(self._notes)

    def shares_for(self, client: int) -> dict[int, bytes]:
        """Return the notes to a client."""
        return {
            other: self._notes[other][client]
            for other in self._graph.of(client)
            if other in self._notes
        }

    def note_masked(self, client: int, words: Words) -> None:
        """Take a client's masked words."""
        self.masked[client] = words

    def note_revealed(self, client: int, shares: Mapping[int, bytes]) -> None:
        """Take a client's shares of its neighbours' seeds.

        Raises
        ------
        PayloadError
            If they are not of these.
        """
        known = set(self._graph.of(client)) & self._notes.keys()
        sizes = {len(part) for part in shares.values()}
        if not shares.keys() <= known or not sizes <= {SEED_BYTES}:
            raise PayloadError("its shares are not of its neighbours' seeds")
        self._revealed[client] = shares

    def total(self) -> Words:
        """Return the sum of the words that have arrived, without masks.

        Raises
        ------
        FederationError
            If too few neighbours of a client are left to take its masks away, or too
            many of them have sent wrong shares.
        """
        total = np.zeros(self._n_words, np.uint32)
        for words in self.masked.values():
            total += words
        for client in self._notes:
            if client in self.masked:
                seed = keys.derived(self._seed_of(client), _ALONE)
                total -= keys.mask(seed, self._n_words)
            else:
                self._remove_shared(client, total)
        return total

    def _remove_shared(self, dropped: int, total: Words) -> None:
        """Take away what survivors added for one who has dropped out, in place."""
        alive = [other for other in self._graph.of(dropped) if other in self.masked]
        if not alive:
            return
        pair = KeyPair(self._seed_of(dropped))
        for other in alive:
            key = pair.agree(self.public[other].masking, _MASKING)
            found = keys.mask(key, self._n_words)
            total -= found if other < dropped else -found

    def _seed_of(self, client: int) -> bytes:
        """Restore the one seed of a client that its neighbours have told of.

        Shares that are wrong are found out: by the client's public key of the one seed,
        by its commitment to the other.
        """
        places = {other: place for place, other in enumerate(self._graph.of(client))}
        shares = {
            places[other]: self._revealed[other][client]
            for other in places
            if client in self._revealed.get(other, ())
        }
        enough = threshold(len(places))
        if len(shares) < enough:
            raise FederationError(
                f"{len(shares)} shares of client {client}'s seed are left, of {enough} "
                "that it takes to remove its mask: neighbours were silent, or could "
                "not read its notes; raise secure_neighbours"
            )

        def fits(seed: bytes) -> bool:
            public = self.public[client]
            if client in self.masked:
                return keys.derived(seed, _COMMITMENT) == public.alone
            return KeyPair(seed).public == public.masking

        seed, wrong = keys.restore(shares, enough, fits)
        if seed is None:
            raise FederationError(
                f"no {enough} shares restore the seed of client {client}: it, or many "
                f"of its {len(shares)} neighbours, sent wrong ones"
            )
        others = {place: other for other, place in places.items()}
        self.faults += [
            (others[place], f"its share of client {client}'s seed is wrong")
            for place in wrong
        ]
        return seed


def _about(sender: int, receiver: int) -> bytes:
    return sender.to_bytes(8, "big") + receiver.to_bytes(8, "big")
