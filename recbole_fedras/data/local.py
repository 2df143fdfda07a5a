"""What compiled local training of a group of clients takes and returns.

Numba compiles functions of NamedTuples as it does functions of their fields, so that
a kernel's arguments are few and its fields have names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.data.clients import Samples

Floats = NDArray[np.float32]


class LocalParameters(NamedTuple):
    """What a group's clients train, and where to put what comes of it.

    Attributes
    ----------
    users : ndarray of float32, shape (n_clients, dim)
        Private rows, trained in place.
    table : ndarray of float32, shape (n_items, dim)
        The replica of all of them; not written to.
    theta : ndarray of float32, shape (n_theta,)
        The network, flattened; not written to.
    changes : ndarray of float32, shape (n_rows, dim)
        Overwritten by how much each client's copies of table rows change: of client c
        the rows ``row_offsets[c]:row_offsets[c + 1]`` of its :class:`Samples`.
    theta_changes : ndarray of float32, shape (n_clients, n_theta)
        Overwritten by how much each client's copy of theta changes.
    """

    users: Floats
    table: Floats
    theta: Floats
    changes: Floats
    theta_changes: Floats


class Descent(NamedTuple):
    """How a client descends: numbers of ``LocalTraining``, as compiled code takes them.

    Attributes
    ----------
    batch_size : int
    learning_rate, user_learning_rate, theta_learning_rate : float
    weight_decay : float
    rho_shared, rho_private : float
    pairwise, upload_gradient : bool
        See :class:`recbole_fedras.federation.settings.LocalTraining`.
    gradient_map : ndarray of float32, shape (dim, dim), or (0, 0): none
        Applied to the gradients of items.
    """

    batch_size: int
    learning_rate: float
    user_learning_rate: float
    theta_learning_rate: float
    weight_decay: float
    rho_shared: float
    rho_private: float
    pairwise: bool
    upload_gradient: bool
    gradient_map: Floats


#: Trains a group's clients; returns the loss of each, summed over its samples.
TrainClients = Callable[[LocalParameters, Samples, Descent], NDArray[np.float64]]
