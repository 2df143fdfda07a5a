"""Steps of many clients side by side: padded batches of their samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.data.clients import Samples
from recbole_fedras.embedding.base import LocalRows


class Batch(NamedTuple):
    """A step's samples of n clients; shorter ones are padded with their first sample.

    Attributes
    ----------
    row : Tensor of int64, shape (n, width, h)
        Rows of the group's table that make up each sample's item.
    item : Tensor of int64, shape (n, width)
    label : Tensor, shape (n, width)
    valid : Tensor of bool, shape (n, width)
        Whether it is a sample, not padding.
    size : Tensor of int64, shape (n,)
        Samples of each client.
    """

    row: Tensor
    item: Tensor
    label: Tensor
    valid: Tensor
    size: Tensor


class Schedule:
    """Who takes how many steps.

    Parameters
    ----------
    samples : Samples
        Of a group.
    batch_size : int

    Attributes
    ----------
    order : ndarray of int64, shape (n_clients,)
        The group's clients, those with most steps first, so that the ones still
        training are a prefix.
    """

    def __init__(self, samples: Samples, batch_size: int) -> None:
        per_epoch = np.diff(samples.sample_offsets) // samples.n_epochs
        n_batches = -(-per_epoch // batch_size)
        self.order = np.argsort(-n_batches, kind="stable")
        self._samples = samples
        self._batch_size = min(batch_size, int(per_epoch.max()))
        self._sizes, self._n_batches = per_epoch[self.order], n_batches[self.order]

    def batches(self, local: LocalRows, device: torch.device) -> Iterator[Batch]:
        """Yield every step's batch, of the first clients in ``order``.

        Sizes are known on the host: nothing waits for the device.
        """

        def place(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device)

        samples, batch_size = self._samples, self._batch_size
        sizes, n_batches = self._sizes, self._n_batches
        shift = np.repeat(samples.row_offsets[:-1], np.diff(samples.sample_offsets))
        # Of each sample its place among the group's items, whose rows are members.
        own_items, labels = place(samples.rows + shift), place(samples.labels)
        members, items = place(local.members), place(samples.ids)
        first = place(samples.sample_offsets[:-1][self.order])
        own_sizes, own_batches = place(sizes), place(n_batches)
        column = torch.arange(batch_size, device=device)
        for step in range(samples.n_epochs * int(n_batches[0])):
            n = int(np.count_nonzero(step < samples.n_epochs * n_batches))
            done = step % n_batches[:n] * batch_size
            width = min(int((sizes[:n] - done).max()), batch_size)
            begin = step % own_batches[:n] * batch_size
            size = (own_sizes[:n] - begin).clamp(max=batch_size)
            start = first[:n] + step // own_batches[:n] * own_sizes[:n] + begin
            valid = column[:width] < size[:, None]
            sample = start[:, None] + column[:width]
            sample = torch.where(valid, sample, start[:, None])
            item = own_items[sample]
            yield Batch(members[item], items[item], labels[sample], valid, size)
