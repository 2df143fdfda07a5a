"""Worlds by formula: all clients alike, lognormal links, two classes."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from recbole_fedras.federation.world.base import (
    Device,
    Devices,
    Places,
    World,
    scaled,
)


class Constant(World):
    """Every client has the usual link and device."""

    def devices(self, places: Places, usual: Device, availability: float) -> Devices:
        """Return what is usual, for each."""
        alike = np.ones(len(places.link))
        return scaled(usual, alike, alike, availability)


class Lognormal(World):
    """Speeds are lognormal around what is usual: a few clients are very slow.

    Parameters
    ----------
    link_spread, device_spread : float
        Standard deviations of the natural logarithms, 10 at most; with 1, one client in
        six is slower than 0.37 times the usual.
    """

    def __init__(self, link_spread: float = 1.0, device_spread: float = 0.5) -> None:
        for name, spread in (("link", link_spread), ("device", device_spread)):
            if not 0 <= spread <= 10:
                raise ValueError(f"{name}_spread={spread} must be from 0 to 10")
        self._link, self._device = link_spread, device_spread

    def devices(self, places: Places, usual: Device, availability: float) -> Devices:
        """Return the quantiles at these places."""
        link = np.exp(self._link * ndtri(places.link))
        device = np.exp(self._device * ndtri(places.device))
        return scaled(usual, link, device, availability)


class TwoClasses(World):
    """Some clients are slow: their link and their device, by one factor each.

    Parameters
    ----------
    slow_share : float
        Share of the clients that are slow.
    slow_link, slow_device : float
        Their speed, times what is usual.
    """

    def __init__(
        self,
        slow_share: float = 0.3,
        slow_link: float = 0.1,
        slow_device: float = 0.25,
    ) -> None:
        if not 0 <= slow_share <= 1:
            raise ValueError(f"slow_share={slow_share} must be from 0 to 1")
        for name, factor in (("slow_link", slow_link), ("slow_device", slow_device)):
            if factor <= 0:
                raise ValueError(f"{name}={factor} must be positive")
        self._share, self._link, self._device = slow_share, slow_link, slow_device

    def devices(self, places: Places, usual: Device, availability: float) -> Devices:
        """Return the class of each place."""
        slow = places.link < self._share
        link = np.where(slow, self._link, 1.0)
        return scaled(usual, link, np.where(slow, self._device, 1.0), availability)
