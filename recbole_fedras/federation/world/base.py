"""What a world is: it says which link and which device each client has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from recbole_fedras.numeric.rng import Stream, counter_key, normals

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What is drawn once for a run, in place of a round.
_ONCE = 0


class Device(NamedTuple):
    """What is usual: the median client's link and device.

    Attributes
    ----------
    uplink, downlink : float
        Bytes a second.
    flops : float
        Operations a second that training reaches.
    """

    uplink: float
    downlink: float
    flops: float


class Devices(NamedTuple):
    """Links and devices of all clients, each an array of shape (n_clients,).

    Attributes
    ----------
    uplink, downlink : ndarray of float64
        Bytes a second.
    flops : ndarray of float64
        Operations a second that training reaches.
    availability : ndarray of float64
        Probability of being there when a round begins.
    """

    uplink: Floats
    downlink: Floats
    flops: Floats
    availability: Floats


class Places(NamedTuple):
    """Where clients stand from slowest to fastest, each in (0, 1), shape (n_clients,).

    Attributes
    ----------
    link, device : ndarray of float64
        Uniform, and independent of each other.
    """

    link: Floats
    device: Floats


class World(ABC):
    """Which links and devices there are.

    One of your own derives from this; constructor parameters become config keys, and
    its key is ``world_class``. It draws nothing: places are drawn for it.

    Examples
    --------
    >>> class Halves(World):
    ...     def devices(self, places, usual, availability):
    ...         factor = np.where(places.link < 0.5, 0.5, 1.0)
    ...         return scaled(usual, factor, np.ones_like(factor), availability)
    >>> usual = Device(uplink=10.0, downlink=20.0, flops=1e6)
    >>> places = Places(np.array([0.9, 0.1]), np.array([0.5, 0.5]))
    >>> Halves().devices(places, usual, availability=1.0).uplink.tolist()
    [10.0, 5.0]
    """

    @abstractmethod
    def devices(self, places: Places, usual: Device, availability: float) -> Devices:
        """Return what the clients at these places have.

        Parameters
        ----------
        places : Places
        usual : Device
            What the keys of the run say.
        availability : float
            Likewise, of each client.
        """


def scaled(usual: Device, link: Floats, device: Floats, availability: float) -> Devices:
    """Return what is usual, times a factor for each link and for each device."""
    return Devices(
        usual.uplink * link,
        usual.downlink * link,
        usual.flops * device,
        np.full(len(link), availability),
    )


def draw_places(activity: Ints, correlation: float, seed: int) -> Places:
    """Draw clients' places, once for a run.

    Parameters
    ----------
    activity : ndarray of int64, shape (n_clients,)
        Interactions of each.
    correlation : float
        Of the normal scores of activity and of the link's place (a Gaussian copula): 1
        gives the most active the fastest links, -1 the slowest, 0 leaves it to chance.
    seed : int

    Examples
    --------
    >>> places = draw_places(np.array([5, 9, 7]), correlation=1.0, seed=1)
    >>> places.link.argsort().tolist()
    [0, 2, 1]
    """
    n = len(activity)
    key = counter_key(seed, Stream.WORLD, _ONCE)
    drawn = normals(key, np.arange(n), 3)
    # Equally active clients stand in a random order, so that ranks are all distinct.
    order = np.lexsort((drawn[:, 2], activity))
    scores = np.empty(n)
    scores[order] = _normal_scores(n)
    link = correlation * scores + np.sqrt(1 - correlation**2) * drawn[:, 0]
    return Places(_evenly(link), ndtr(drawn[:, 1]))


def _normal_scores(n: int) -> Floats:
    return np.asarray(ndtri((np.arange(n) + 0.5) / n))


def _evenly(values: Floats) -> Floats:
    """Return where values stand among each other, evenly in (0, 1)."""
    return np.asarray((rankdata(values, "ordinal") - 0.5) / len(values))
