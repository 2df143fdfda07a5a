"""Which clients of a shard train together: groups by number, parts by memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np

from recbole_fedras.data.clients import ClientData, Samples, draw_samples
from recbole_fedras.federation.protocol import Agreement, Ints
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.numeric.parallel import thread_map
from recbole_fedras.numeric.rng import Stream, counter_key
from recbole_fedras.wire.message import Message

#: Updates of a cohort that a shard holds at a time, about; the rest waits its turn. Of
#: less there would be too few groups to be shared out evenly among threads.
PART_BYTES = 2**26

#: Messages to one client, in their order.
Invitation = list[Message]


def parts(
    messages: Iterable[Message],
    agreement: Agreement,
    data: ClientData,
    training: LocalTraining,
    rows_of_item: int,
    whole: bool = False,
) -> Iterator[list[Invitation]]:
    """Collect clients' messages until their updates reach ``PART_BYTES``.

    Groups stay whole, so that parts of another size change no bit.

    Parameters
    ----------
    messages : iterable of Message
        Those to one client follow each other, clients increase.
    agreement, data, training
    rows_of_item : int
        Rows of the table that make up an item.
    whole : bool
        Whether all clients are one part, however large.
    """

    def update_bytes(invitation: Invitation) -> int:
        client = invitation[0].header.client
        count = data.offsets[client + 1] - data.offsets[client]
        n_items = count * (1 + training.local_epochs * training.n_negatives)
        n_rows = min(int(n_items) * rows_of_item, agreement.n_items)
        return 4 * n_rows * agreement.dim

    part: list[Invitation] = []
    size = 0
    by_client = groupby(messages, lambda message: message.header.client)
    invitations = (list(invitation) for _, invitation in by_client)
    for _, group in groupby(
        invitations, lambda invitation: invitation[0].header.client // agreement.block
    ):
        members = list(group)
        needed = sum(map(update_bytes, members))
        if part and not whole and size + needed > PART_BYTES:
            yield part
            part, size = [], 0
        part += members
        size += needed
    if part:
        yield part


def draw_groups(
    clients: Ints,
    agreement: Agreement,
    data: ClientData,
    training: LocalTraining,
    round: int,
    whole: bool,
) -> tuple[list[Ints], list[Samples]]:
    """Split clients into groups, and draw what each trains on, in threads.

    Parameters
    ----------
    clients : ndarray of int64
        Increasing.
    agreement, data, training
    round : int
    whole : bool
        Whether all clients are one group, as another device than the CPU takes them.
    """
    groups = [clients]
    if not whole:
        starts = 1 + np.flatnonzero(np.diff(clients // agreement.block))
        groups = np.split(clients, starts)
    key = counter_key(agreement.client_seed, Stream.SAMPLES, round)

    def draw(group: Ints) -> Samples:
        counts = (training.n_negatives, training.local_epochs)
        return draw_samples(data, group, *counts, key, training.pairwise)

    return groups, thread_map(draw, groups)
