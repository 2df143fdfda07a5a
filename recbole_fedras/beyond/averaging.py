"""Federated averaging of any PyTorch model, with compressed messages both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from recbole_fedras.beyond.updates import (
    ErrorFeedback,
    Occasion,
    Update,
    decompress_update,
)
from recbole_fedras.compressor.base import SERVER, Compressor
from recbole_fedras.errors import NonFiniteError


class Examples(NamedTuple):
    """Inputs (n, ...) and classes (n,)."""

    inputs: Tensor
    classes: Tensor


@dataclass(frozen=True, slots=True)
class Averaging:
    """How a model is trained.

    Attributes
    ----------
    compressor : Compressor
        Of both directions, with error feedback.
    compression_rate : float
        Of all bytes of a message.
    rounds, cohort : int
        Clients that train in each round.
    learning_rate : float
        Of SGD on the mean cross-entropy of a batch.
    batch_size, seed : int
    """

    compressor: Compressor
    compression_rate: float
    rounds: int
    cohort: int
    learning_rate: float = 0.1
    batch_size: int = 10
    seed: int = 0


class Sent(NamedTuple):
    """Bytes that have crossed the wire; every client takes each downlink."""

    uplink: int
    downlink: int


def train(model: nn.Module, clients: Sequence[Examples], how: Averaging) -> Sent:
    """Train a model in place: a round is one epoch of each client of a cohort.

    Clients start from what downlinks have made of the model. Their updates, as they
    arrive, are averaged by their examples, and the server sends how far it is ahead of
    the clients, in one message for all. The model ends as clients have it.

    Parameters
    ----------
    model : nn.Module
        Of floats only; batch normalisation's counters are none.
    clients : sequence of Examples
    how : Averaging

    Raises
    ------
    NonFiniteError
        If a client's training diverged.
    """
    rng = np.random.default_rng([how.seed, 0])
    held = _copy(model)
    uplinks = [ErrorFeedback() for _ in clients]
    downlink, up, down = ErrorFeedback(), 0, 0
    for round in range(how.rounds):
        cohort = np.sort(rng.choice(len(clients), how.cohort, replace=False))
        n_examples = sum(len(clients[client].classes) for client in cohort)
        mean = {name: torch.zeros_like(value) for name, value in held.items()}
        for client in cohort.tolist():
            examples, occasion = clients[client], Occasion(round, client, how.seed)
            _train_locally(model, examples, how, occasion)
            update = {name: value - held[name] for name, value in _copy(model).items()}
            _require_finite(update, occasion)
            model.load_state_dict(held)
            data = uplinks[client].compress(
                update, how.compressor, how.compression_rate, occasion
            )
            up += len(data)
            arrived = decompress_update(data, held, how.compressor, occasion)
            share = len(examples.classes) / n_examples
            for name, value in arrived.items():
                mean[name] += share * value
        occasion = Occasion(round, SERVER, how.seed)
        data = downlink.compress(mean, how.compressor, how.compression_rate, occasion)
        down += len(data) * len(clients)
        arrived = decompress_update(data, held, how.compressor, occasion)
        held = {name: value + arrived[name] for name, value in held.items()}
        model.load_state_dict(held)
    return Sent(up, down)


def class_ranks(model: nn.Module, examples: Examples) -> Tensor:
    """Return the place of each example's class among all, by score; 1: it is found.

    Of classes with equal scores an example's is the last.
    """
    with torch.no_grad():
        scores: Tensor = model(examples.inputs)
    return (scores >= scores.gather(1, examples.classes[:, None])).sum(dim=1)


def accuracy(model: nn.Module, examples: Examples) -> float:
    """Return the share of examples whose class is found."""
    return float((class_ranks(model, examples) == 1).double().mean())


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _require_finite(update: Update, occasion: Occasion) -> None:
    for name, value in update.items():
        if not value.isfinite().all():
            raise NonFiniteError(
                f"round {occasion.round}, client {occasion.sender}: the change of "
                f"{name!r} is not finite; a lower learning_rate may help"
            )


def _train_locally(
    model: nn.Module, examples: Examples, how: Averaging, occasion: Occasion
) -> None:
    rng = np.random.default_rng([how.seed, 1, occasion.round, occasion.sender])
    order = torch.from_numpy(rng.permutation(len(examples.classes)))
    parameters = list(model.parameters())
    for batch in torch.split(order, how.batch_size):
        loss = cross_entropy(model(examples.inputs[batch]), examples.classes[batch])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for value, gradient in zip(parameters, gradients, strict=True):
                value.sub_(gradient, alpha=how.learning_rate)
