"""How long a round takes: when clients finish, and when the server has enough."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.federation.world.base import Devices, Floats, Ints

Bools = NDArray[np.bool_]


class Work(NamedTuple):
    """What each client invited has to do, arrays of shape (n_invited,).

    Attributes
    ----------
    begun : ndarray of float64
        When it was invited; 0 is the begin of the round, others were before.
    downlink : ndarray of int64
        Bytes that it is sent.
    flops : ndarray of float64
        Operations of its training.
    uplink : ndarray of int64
        Bytes of its update.
    dropped : ndarray of bool
        Whether it is lost before it uploads.
    """

    begun: Floats
    downlink: Ints
    flops: Floats
    uplink: Ints
    dropped: Bools


class Timeline(NamedTuple):
    """What came of it, arrays of shape (n_invited,) but for ``seconds``.

    Attributes
    ----------
    seconds : float
        From the first byte sent until the server closes.
    arrival, ended : ndarray of float64
        When the update is there, inf: never; and when the client is done or lost.
    in_time : ndarray of bool
        Whose updates were there.
    received, sent : ndarray of int64
        Bytes that had passed the link by the close.
    trained : ndarray of float64
        Operations done by then.
    """

    seconds: float
    arrival: Floats
    ended: Floats
    in_time: Bools
    received: Ints
    sent: Ints
    trained: Floats


def unfold(
    work: Work, devices: Devices, wanted: int, deadline: float | None = None
) -> Timeline:
    """Let clients of a cohort receive, train and send, each at its own pace.

    The server closes as soon as ``wanted`` updates are there, or nobody is left who
    could send one, or at the deadline. It sees at once that a link breaks. Of updates
    that are there at the same moment the first in the cohort count.

    Parameters
    ----------
    work : Work
    devices : Devices
        Of the same clients.
    wanted : int
        At least 1.
    deadline : float, optional
        Seconds.

    Examples
    --------
    >>> one = np.ones(3)
    >>> devices = Devices(10 * one, 100 * one, np.array([1.0, 2.0, 4.0]), one)
    >>> nobody = np.zeros(3, bool)
    >>> work = Work(0 * one, 200 * one, 4 * one, 50 * one, nobody)
    >>> done = unfold(work, devices, wanted=3, deadline=9.5)
    >>> done.arrival.tolist(), done.seconds
    ([11.0, 9.0, 8.0], 9.5)
    >>> done.in_time.tolist(), done.sent.tolist()
    ([False, True, True], [35, 50, 50])
    """
    received_at = work.begun + work.downlink / devices.downlink
    trained_at = received_at + work.flops / devices.flops
    arrival = trained_at + work.uplink / devices.uplink
    ended = np.where(work.dropped, trained_at, arrival)
    arrival = np.where(work.dropped, np.inf, arrival)
    order = np.argsort(arrival, kind="stable")[:wanted]
    enough = len(order) == wanted and np.isfinite(arrival[order[-1]])
    close = arrival[order[-1]] if enough else ended.max()
    close = max(close, 0.0)
    if deadline is not None:
        close = min(close, deadline)
    in_time = np.zeros(len(arrival), bool)
    in_time[order] = arrival[order] <= close
    sent = np.clip((close - trained_at) * devices.uplink, 0, work.uplink)
    sent = np.where(in_time, work.uplink, np.where(work.dropped, 0, np.floor(sent)))
    received = np.clip((close - work.begun) * devices.downlink, 0, work.downlink)
    trained = np.clip((close - received_at) * devices.flops, 0, work.flops)
    return Timeline(
        float(close),
        arrival,
        ended,
        in_time,
        received.astype(np.int64),
        sent.astype(np.int64),
        trained,
    )
