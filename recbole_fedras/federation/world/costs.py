"""What taking part costs a client besides bytes: operations and memory."""

from __future__ import annotations

import numpy as np

from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.federation.world.base import Floats, Ints

#: Operations for a weight and sample: a multiplication and an addition forward, and
#: two of each backward, for the gradients of the weight and of what it multiplies.
FLOPS_PER_WEIGHT = 6

_FLOAT = 4  # bytes
_SAMPLE = 8  # bytes: the row as int32, the label as float32


def samples_of(activity: Ints, training: LocalTraining) -> Ints:
    """Return how many samples each client goes through in a local epoch.

    With BPR a pair is two, and an item stands in as many as it has negatives.
    """
    n = training.n_negatives
    return activity * (2 * n if training.pairwise else 1 + n)


def flops_of_training(
    activity: Ints, agreement: Agreement, training: LocalTraining, rows_of_item: int
) -> Floats:
    """Return the operations of one participation, shape (n_clients,).

    A sample goes once through the values of its item and each weight of the network,
    ``FLOPS_PER_WEIGHT`` operations each; twice with sharpness-aware minimisation.

    Parameters
    ----------
    activity : ndarray of int64, shape (n_clients,)
        Interactions of each.
    agreement : Agreement
    training : LocalTraining
    rows_of_item : int
        Rows of the table exchanged that make up an item.
    """
    weights = agreement.dim * rows_of_item + agreement.n_theta
    gradients = 2 if training.sharpness_aware else 1
    of_sample = FLOPS_PER_WEIGHT * weights * gradients
    samples = samples_of(activity, training) * training.local_epochs
    return np.asarray(samples * float(of_sample))


def memory_of_training(
    activity: Ints, agreement: Agreement, training: LocalTraining, rows_of_item: int
) -> Ints:
    """Return the bytes that a client holds while it trains, shape (n_clients,).

    They are float32 values of: the item table, and again if there is uplink feedback
    (the residual); the network, twice (as received, as trained); the rows that its
    samples are of, as trained; gradients of the rows of a batch and of the network; its
    user embedding, twice, and the state of Adam, if it has one. Besides, the samples of
    all epochs. Rows are counted as if no item were drawn twice. Not counted: messages,
    which :class:`WorldTransport` adds; activations; what the program itself takes.

    Parameters
    ----------
    activity, agreement, training, rows_of_item
        As for :func:`flops_of_training`.
    """
    federation, dim = agreement.federation, agreement.dim
    table = agreement.n_items * dim * (2 if federation.uplink_feedback else 1)
    samples = samples_of(activity, training)
    n_drawn = activity * (1 + training.n_negatives * training.local_epochs)
    n_rows = np.minimum(n_drawn * rows_of_item, agreement.n_items)
    batch = np.minimum(samples, training.batch_size) * rows_of_item
    user = 2 * dim + (2 * dim + 1 if training.user_optimizer == "adam" else 0)
    values = table + 3 * agreement.n_theta + (n_rows + batch) * dim + user
    drawn = _SAMPLE * samples * training.local_epochs
    return np.asarray(_FLOAT * values + drawn)
