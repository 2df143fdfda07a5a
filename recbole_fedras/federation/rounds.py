"""Rounds of a federation, one after the other, whoever carries the messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.embedding.base import ItemEmbedding
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.round import RoundReport
from recbole_fedras.federation.server.server import Server
from recbole_fedras.wire.ledger import Ledger


class Rounds(ABC):
    """A server, its ledger, and a way to clients.

    Attributes
    ----------
    agreement : Agreement
    server : Server
    ledger : Ledger
    embedding : ItemEmbedding or None
        What items are made of.
    n_items : int
        Of the catalogue; the table exchanged has other rows with an embedding.
    """

    agreement: Agreement
    server: Server
    ledger: Ledger
    embedding: ItemEmbedding | None
    n_items: int

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self.server.round

    @abstractmethod
    def run_round(self) -> RoundReport:
        """Run a round.

        Raises
        ------
        NonFiniteError
            If local training diverged; the state is still that of the round before.
        FederationError
            If clients are trusted and all updates were refused; likewise.
        """

    def go_on_from(self, other: Rounds) -> None:
        """Take over what other rounds have come to, but for their parameters."""
        self.ledger.load_state_dict(other.ledger.state_dict())
        self.server.invitations[:] = other.server.invitations
        self.server.begun = other.server.begun
        self.server.at_begin = other.server.at_begin

    #: Whether the user has asked for an end: no one is waited for then.
    asked_to_end: Callable[[], bool] = staticmethod(lambda: False)

    #: Whether checkpoints do not hold what clients do: nobody returns to one's past.
    clients_are_elsewhere: bool = False

    def evaluate(self, phase: str, best: bool) -> dict[str, Any] | None:
        """Let shards evaluate, if they are in other processes; None: they are here.

        Parameters
        ----------
        phase : {'valid', 'test'}
        best : bool
            Whether by what clients held at the best round, which has been loaded if it
            could be.

        Returns
        -------
        dict of str to dict, or None
            What each shard has found, by name.
        """
        return None

    def carried(self) -> dict[str, Any]:
        """Return bytes that went between processes; none here.

        They are no part of the ledger, which counts as if each client were a device.
        """
        return {}

    def in_world(self) -> dict[str, float]:
        """Return what rounds took in a described world; empty: there is none."""
        return {}

    def links(self) -> NDArray[np.float64] | None:
        """Return clients' downlinks in that world, bytes a second; None without one."""
        return None

    @abstractmethod
    def state_bytes(self) -> int:
        """Return about how many bytes of :meth:`state_dict` change in a round."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that the next round depends on, but for what is kept elsewhere."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""

    @abstractmethod
    def load_clients(self, state: Any) -> None:
        """Let clients hold what they did when a state was saved; the server stays."""

    def keep_best(self) -> None:
        """Learn that this round is the best so far: nothing, but in a deployment."""
        return
