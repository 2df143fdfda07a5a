"""How the scoring network travels: as it is, or coded within a budget of bytes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import RoundContext
from recbole_fedras.errors import PayloadError
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.wire.columns import (
    NOTHING,
    Table,
    expected_size,
    get_table,
    pack_table,
    put_table,
    table_size,
)
from recbole_fedras.wire.payload import FLOAT32, Layout, Payload

Floats = NDArray[np.float64]

_NO_THETA = torch.zeros(0)

#: Bytes that a network may take at any rate: of few values little can be left out.
_LEAST = 64

_FINEST = 2.0**-24  # of steps, in the largest value
_SMALLEST, _LARGEST = 1e-30, 1e30  # of steps, of values: all steps are float32


def bytes_of_network(n_theta: int, rate: float) -> int:
    """Return what a rate leaves of a network's float32 values, framing included."""
    return max(_LEAST, int(FLOAT32.itemsize * n_theta * (1 - rate)))


def size_of_network(n_theta: int) -> int:
    """Return the bytes of a network as it is, framing included; 0 if there is none."""
    whole = Layout().floats("theta", n_theta)
    return whole.size - Layout().size if n_theta else 0


def as_column(theta: Tensor) -> Tensor:
    """Return a network as a table, shape (n_theta, 1): its values are all alike."""
    return theta[:, None]


def put_theta(payload: Payload, theta: Tensor) -> Payload:
    """Add the network, shape (n_theta,), as field ``theta``; nothing if there is none.

    It is not compressed: float32, ``4 n_theta`` bytes.
    """
    if len(theta):
        payload.put_floats("theta", theta.numpy(), part="theta")
    return payload


def get_theta(payload: Payload, n_theta: int) -> Tensor:
    """Invert :func:`put_theta`."""
    if not n_theta:
        return _NO_THETA
    return torch.from_numpy(payload.floats("theta", n_theta).copy())


def put_coded(
    payload: Payload, change: Tensor, n_bytes: int, ctx: RoundContext
) -> Payload:
    """Add what a client has changed of the network, within a budget.

    Values are rounded at random to a multiple of a step, so that their expectation is
    what they are, as in QSGD (Alistarh et al., NIPS 2017): what one client loses, the
    mean over many has. The step is the finest whose multiples, arithmetically coded,
    fit. Where the first that is found does not, the next depends on the draws a little.

    **Wire**: ``theta``, the step and the multiples; see
    :func:`~recbole_fedras.wire.columns.put_table`.

    Parameters
    ----------
    payload : Payload
    change : Tensor, shape (n_theta,)
    n_bytes : int
        That the field may take, framing included.
    ctx : RoundContext
        Of what the client draws for itself.

    Raises
    ------
    ValueError
        If a value is not finite.

    Examples
    --------
    >>> change, ctx = torch.linspace(-1, 1, 500), RoundContext(0, 2020, 10, 8)
    >>> payload = put_coded(Payload(), change, 100, ctx)
    >>> payload.size <= 100 + Payload().size
    True
    >>> arrived = get_coded(payload, 500)
    >>> arrived.unique().numel(), bool((arrived - change).mean().abs() < 0.1)
    (3, True)
    """
    values = as_column(change).numpy().astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the network's change is not finite")
    values = values.clip(-_LARGEST, _LARGEST)
    rng = generator(ctx.seed, Stream.NETWORK, ctx.round, ctx.sender + 1)
    # By the draws that round, a step would be chosen that favours what they favour.
    others, chances = rng.random((2, *values.shape))
    step = _find_step(values, others, n_bytes - table_size("theta", 1))
    while True:
        scale = np.array([step], np.float32)
        code = pack_table(_rounded(values, chances, float(scale[0])))
        if table_size("theta", 1, len(code)) <= n_bytes:
            put_table(payload, "theta", scale, code)
            return payload
        step *= 1.02


def get_coded(payload: Payload, n_theta: int) -> Tensor:
    """Invert :func:`put_coded`; shape (n_theta,).

    Raises
    ------
    PayloadError
        If the payload does not have that form.
    """
    (step,), table = get_table(payload, "theta", 1, (n_theta, 1))
    if not 0 < step < np.inf:
        raise PayloadError(f"field 'theta': a step of {step}")
    with np.errstate(over="ignore"):  # whatever was received
        values = (float(step) * table).astype(np.float32)
    return torch.from_numpy(values.ravel())


def _find_step(values: Floats, chances: Floats, room: int) -> float:
    """Bisect for the finest step whose multiples take no more than ``room`` bytes.

    A table of zeros takes next to nothing, so one that is coarse enough always fits.
    """

    def fits(step: float) -> bool:
        size: float = expected_size(_rounded(values, chances, step), NOTHING)
        return size <= room

    largest, mean_square = np.abs(values).max(), np.square(values).mean()
    finest = max(float(largest) * _FINEST, _SMALLEST)
    coarse = max(4 * float(np.sqrt(mean_square)), finest)
    while not fits(coarse):
        coarse *= 4
    while coarse > finest and fits(coarse / 4):
        coarse /= 4
    fine = coarse / 4
    while coarse > 1.02 * fine:
        step = float(np.sqrt(fine * coarse))
        fine, coarse = (fine, step) if fits(step) else (step, coarse)
    return coarse


def _rounded(values: Floats, chances: Floats, step: float) -> Table:
    """Return which multiples of a step values are rounded to, up or down by chance."""
    return np.floor(values / step + chances).astype(np.int32)
