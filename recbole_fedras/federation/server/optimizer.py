"""What the server makes of an aggregate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_fedras.federation.settings import ServerOptimization


class ServerOptimizer:
    """The FedOpt family, for one tensor of shared parameters.

    Source: Reddi et al., "Adaptive Federated Optimization" (ICLR 2021).
    With D the aggregated change of a round::

        m <- b1 m + (1 - b1) D
        v <- v + D^2                              (adagrad)
             v - (1 - b2) D^2 sign(v - D^2)       (yogi)
             b2 v + (1 - b2) D^2                  (adam)
        x <- x + lr m / (sqrt(v) + tau)

    from m = 0 and v = tau^2, without a correction for that start; or, for ``adam`` with
    ``bias_correction``, from v = 0, with ``m / (1 - b1^t)`` and ``v / (1 - b2^t)`` in
    step t, as Adam has it. A value that no client changed counts with D = 0, as there:
    it goes on moving while m lasts.

    Parameters
    ----------
    settings : ServerOptimization
    """

    def __init__(self, settings: ServerOptimization) -> None:
        self._settings = settings
        self._state: dict[str, Tensor] = {}
        self._next: dict[str, Tensor] = {}

    def step(self, change: Tensor) -> Tensor:
        """Return what to add for an aggregated change, of the same shape."""
        settings = self._settings
        if settings.optimizer == "sgd":
            return change if settings.is_plain else settings.learning_rate * change
        first = 0.0 if settings.bias_correction else settings.tau**2
        start = {
            "mean": torch.zeros_like(change),
            "squares": torch.full_like(change, first),
            "steps": torch.zeros(()),
        }
        state = {name: self._state.get(name, value) for name, value in start.items()}
        mean, squares, steps = state["mean"], state["squares"], state["steps"] + 1
        beta, decay = settings.betas
        mean = beta * mean + (1 - beta) * change
        square = change.square()
        if settings.optimizer == "adagrad":
            squares = squares + square
        elif settings.optimizer == "yogi":
            squares = squares - (1 - decay) * square * torch.sign(squares - square)
        else:
            squares = decay * squares + (1 - decay) * square
        self._next = {"mean": mean, "squares": squares, "steps": steps}
        if settings.bias_correction:
            mean, squares = mean / (1 - beta**steps), squares / (1 - decay**steps)
        return settings.learning_rate * mean / (squares.sqrt() + settings.tau)

    def commit(self) -> None:
        """Keep the state of the last step; until then it has changed nothing."""
        self._state = self._next

    def state_dict(self) -> dict[str, Any]:
        """Return ``mean``, ``squares``, ``steps``; empty before a step, and of sgd."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._state = self._next = dict(state)
