"""All clients of a run in a described world: their links, devices and work."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recbole_fedras.data.clients import ClientData
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.settings import Conditions, Federation, LocalTraining
from recbole_fedras.federation.world.base import (
    Device,
    Devices,
    Floats,
    Ints,
    Places,
    World,
    draw_places,
)
from recbole_fedras.federation.world.clock import Bools
from recbole_fedras.federation.world.costs import flops_of_training, memory_of_training
from recbole_fedras.numeric.rng import Stream, counter_key, uniforms

#: What speeds may be, in bytes or operations a second, so that times are finite; and
#: probabilities of being there.
_SPEED, _AVAILABILITY = (1.0, 1e30), (1e-9, 1.0)

#: What is drawn in each round, after what is drawn once (``base.draw_places``).
_PRESENCE, _DROPOUT = 1, 2


class Described(NamedTuple):
    """A world as a configuration describes it.

    Attributes
    ----------
    world : World
    conditions : Conditions
    """

    world: World
    conditions: Conditions

    def places(self, data: ClientData, seed: int) -> Places:
        """Draw where clients stand; who has more interactions is more active."""
        activity = np.diff(data.offsets)
        return draw_places(activity, self.conditions.activity_correlation, seed)

    def tiers(self, data: ClientData, federation: Federation) -> Ints | None:
        """Return clients' bandwidth tiers: slower links are for higher rates.

        Tiers are of equal size. None where all clients have one rate.
        """
        n_tiers = len(federation.compression_rates)  # increasing
        if n_tiers == 1:
            return None
        link = self.places(data, federation.seed).link
        return ((1 - link) * n_tiers).astype(np.int64)

    def devices(self, places: Places) -> Devices:
        """Return all clients' links and devices, checked.

        Raises
        ------
        ConfigError
            If the world gives what no client can have.
        """
        usual = Device(
            self.conditions.uplink, self.conditions.downlink, self.conditions.flops
        )
        devices = self.world.devices(places, usual, self.conditions.availability)
        for name, values in devices._asdict().items():
            least, most = _AVAILABILITY if name == "availability" else _SPEED
            right = values.shape == places.link.shape
            if not right or not ((values >= least) & (values <= most)).all():
                raise ConfigError(
                    f"world: {type(self.world).__name__} must give each of "
                    f"{len(places.link)} clients a number from {least:g} to {most:g} "
                    f"as {name}"
                )
        return devices

    def population(
        self,
        data: ClientData,
        agreement: Agreement,
        training: LocalTraining,
        rows_of_item: int,
    ) -> Population:
        """Put clients into the world.

        Parameters
        ----------
        data : ClientData
        agreement : Agreement
        training : LocalTraining
        rows_of_item : int
            Rows of the table exchanged that make up an item.
        """
        activity, seed = np.diff(data.offsets), agreement.federation.seed
        return Population(
            self.conditions,
            self.devices(self.places(data, seed)),
            flops_of_training(activity, agreement, training, rows_of_item),
            memory_of_training(activity, agreement, training, rows_of_item),
            data.eligible,
            seed,
        )


class Population(NamedTuple):
    """All clients of a run, as the world has them.

    Attributes
    ----------
    conditions : Conditions
    devices : Devices
    flops : ndarray of float64, shape (n_clients,)
        Operations of a participation.
    memory : ndarray of int64, shape (n_clients,)
        Bytes held in training, without messages.
    eligible : ndarray of int64
        Clients that have something to train on.
    seed : int
    """

    conditions: Conditions
    devices: Devices
    flops: Floats
    memory: Ints
    eligible: Ints
    seed: int

    def present(self, round: int) -> Bools:
        """Return who is there when a round begins, shape (n_clients,)."""
        everybody = np.arange(len(self.flops))
        drawn = self._draw(_PRESENCE, round, everybody)
        return np.asarray(drawn < self.devices.availability)

    def dropped(self, round: int, clients: Ints) -> Bools:
        """Return who of these is lost in a round before it uploads."""
        drawn = self._draw(_DROPOUT, round, clients)
        return np.asarray(drawn < self.conditions.dropout)

    def _draw(self, what: int, round: int, clients: Ints) -> Floats:
        key = counter_key(self.seed, Stream.WORLD, what, round)
        return uniforms(key, clients, 1)[:, 0]
