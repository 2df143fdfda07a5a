"""What clients minimise on a batch, and its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from recbole_fedras.embedding.base import ItemEmbedding
from recbole_fedras.federation.client.batches import Batch
from recbole_fedras.federation.client.sam import Gradients, Parameters, ascend
from recbole_fedras.federation.settings import LocalTraining

Score = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss of many clients, each with parameters and samples of its own.

    Attributes
    ----------
    score : callable
        See ``FederatedRecommender.score``.
    training : LocalTraining
    embedding : ItemEmbedding or None
        What items are made of; None: of a row each.
    gradient_map : Tensor or None, shape (width, width)
        Applied to gradients of rows.
    """

    score: Score
    training: LocalTraining
    embedding: ItemEmbedding | None
    gradient_map: Tensor | None

    def slopes(self, parameters: Parameters, batch: Batch) -> tuple[Tensor, Gradients]:
        """Return losses and the gradients to step by, summed over samples.

        Parameters
        ----------
        parameters : tuple
            Users (n, dim), the rows of all clients (n_rows, width), the network by
            name, shapes (n, ...).
        batch : Batch

        Returns
        -------
        losses : Tensor, shape (n,)
        gradients : tuple
            Of users (n, dim), of rows one for each sample and part of its item
            (n * batch width * h, width), of the network by parameter (n, ...); of a
            sharpness-aware training those from uphill.
        """
        training = self.training
        losses, slopes = self._gradients(parameters, batch)
        if training.sharpness_aware:
            uphill = ascend(
                parameters, slopes, batch.row, training.rho_shared, training.rho_private
            )
            _, slopes = self._gradients(uphill, batch)
        return losses, slopes

    def _gradients(
        self, parameters: Parameters, batch: Batch
    ) -> tuple[Tensor, Gradients]:
        users, table, network = parameters
        user = users[:, None].detach().requires_grad_()  # (n, 1, dim)
        parts = table[batch.row].requires_grad_()  # (n, batch width, h, width)
        theta = {
            name: value.detach().requires_grad_() for name, value in network.items()
        }
        with torch.enable_grad():
            if self.embedding is None:
                vectors = parts[:, :, 0]
            else:
                vectors = self.embedding.vectors(parts, batch.item, theta)
            logits = self.score(user, vectors, theta)
            weight = batch.valid.to(logits.dtype)
            if self.training.pairwise:  # item, negative, item, ...
                ahead = logits[:, ::2] - logits[:, 1::2]
                losses = -(logsigmoid(ahead) * weight[:, ::2]).sum(1)
            else:
                losses = binary_cross_entropy_with_logits(
                    logits, batch.label, weight=weight, reduction="none"
                ).sum(1)
            total = losses.sum()
        # A client's parameters are in its loss alone: one pass yields all gradients.
        leaves = [user, parts, *theta.values()]
        of_user, of_item, *of_network = torch.autograd.grad(total, leaves)
        of_item = of_item.reshape(-1, table.shape[1])
        return losses.detach(), (of_user[:, 0], self._mapped(of_item), of_network)

    def decay(self, parameters: Parameters, touched: Tensor) -> Gradients:
        """Return what weight decay adds to gradients, as ``torch.optim`` does it.

        Parameters
        ----------
        parameters : tuple
            As of :meth:`slopes`.
        touched : Tensor of int64, shape (m,)
            Rows that the step touches, each once: all others stay as they are.

        Returns
        -------
        gradients : tuple
            Of users (n, dim), of the rows touched (m, width), of the network.
        """
        users, table, network = parameters
        rate = self.training.weight_decay
        of_network = [rate * value for value in network.values()]
        return rate * users, self._mapped(rate * table[touched]), of_network

    def _mapped(self, of_rows: Tensor) -> Tensor:
        return of_rows if self.gradient_map is None else of_rows @ self.gradient_map
