"""A world of measured devices: a file with one a line."""

from __future__ import annotations

import csv

import numpy as np

from recbole_fedras.federation.world.base import (
    Device,
    Devices,
    Floats,
    Places,
    World,
)

#: Columns of the file, and what one number of each is in the units of ``Devices``.
_UNITS = {
    "uplink_mb_per_s": 1e6,
    "downlink_mb_per_s": 1e6,
    "gflops": 1e9,
    "availability": 1.0,
}


class Trace(World):
    """Each client has one of the devices of a file, drawn with replacement.

    Parameters
    ----------
    world_trace : str
        CSV file with a device a line: ``uplink_mb_per_s`` and ``downlink_mb_per_s``,
        10^6 bytes a second; ``gflops``, 10^9 operations a second, and ``availability``,
        a probability, may be left out, and are the run's then. Slower downlinks are for
        lower places.
    """

    def __init__(self, world_trace: str) -> None:
        self._columns = _read(world_trace)

    def devices(self, places: Places, usual: Device, availability: float) -> Devices:
        """Return the line of each place."""
        columns, n = self._columns, len(places.link)
        order = np.lexsort((columns["uplink_mb_per_s"], columns["downlink_mb_per_s"]))
        line = order[(places.link * len(order)).astype(np.int64)]
        known = {name: values[line] for name, values in columns.items()}
        return Devices(
            known["uplink_mb_per_s"],
            known["downlink_mb_per_s"],
            known.get("gflops", np.full(n, usual.flops)),
            known.get("availability", np.full(n, availability)),
        )


def _read(path: str) -> dict[str, Floats]:
    """Read the columns that the file has, in the units of ``Devices``.

    Raises
    ------
    ValueError
        For a file that is none, or a number that cannot be, with its line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines = [(reader.line_num, line) for line in reader]
            names = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"world_trace={path!r} cannot be read: {error}") from error
    needed = set(list(_UNITS)[:2])
    once = len(set(names)) == len(names)
    if not (lines and once and needed <= set(names) <= _UNITS.keys()):
        raise ValueError(
            f"world_trace={path!r} must have a line of names, {', '.join(_UNITS)} "
            f"(the last two may be left out), and devices under it; it has {names} and "
            f"{len(lines)} devices"
        )
    for number, line in lines:
        if None in line:  # where DictReader puts what has no name
            raise ValueError(f"world_trace={path!r}, line {number}: too many values")
    return {
        name: np.array(
            [_number(path, number, name, line[name]) for number, line in lines]
        )
        for name in names
    }


def _number(path: str, line: int, name: str, written: str) -> float:
    try:
        value = float(written)
    except (TypeError, ValueError):
        value = 0.0
    most = 1.0 if name == "availability" else float("inf")
    if not 0 < value <= most or value == float("inf"):
        raise ValueError(
            f"world_trace={path!r}, line {line}: {name}={written!r} must be a positive "
            f"number{' of at most 1' if most == 1 else ''}"
        )
    return value * _UNITS[name]
