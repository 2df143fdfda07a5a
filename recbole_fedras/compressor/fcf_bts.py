"""FCF-BTS: a bandit at the server learns which rows are worth exchanging."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_fedras.compressor.base import Budget, RoundContext, RowUpdate
from recbole_fedras.compressor.random_rows import RandomRows
from recbole_fedras.errors import ConfigError
from recbole_fedras.wire.bits import Ints
from recbole_fedras.wire.payload import Payload

Floats = NDArray[np.float64]


class FCFBTS(RandomRows):
    """Rows chosen by Bayesian Thompson sampling, each row an arm.

    Source: Khan, Flanagan, Tan, Alamgir and Ammad-ud-din, "A Payload Optimization
    Method for Federated Recommender Systems" (RecSys 2021), of which we could read the
    abstract and the figure of the method only, and the released code of its successor,
    "Communication-Efficient Federated Neural Collaborative Filtering with Multi-Armed
    Bandits", by which the bandit is made. The mean reward of an arm has a Gaussian
    posterior ``N(mu, 1 / tau)``, ``N(0, 1)`` before it was ever chosen. In every round
    a value is drawn from each posterior, and the rows of the ``C_e = floor(N (1 -
    CR))`` largest are exchanged, both ways.

    Parameters
    ----------
    bandit_alpha : float
        Between 0 and 1, see below; 0.999 as in the code.
    bandit_beta : float
        Decay of the mean of squares, at least 0 and below 1; 0.99 as in the code.

    Notes
    -----
    With g the aggregate of a chosen row in round t, g' the one when it was last chosen
    (0 before), and v the bias-corrected running mean of ``g^2`` over rounds, the reward
    is ``(1 - alpha) t |v - g|_1 + (alpha / t) |g' - g|_1``, divided by the largest of
    the round. So early rounds prefer rows that change from one time to the next, later
    ones those that are far from what is usual. After its n-th reward an arm has ``mu <-
    (tau mu + n q) / (tau + n)``, q the mean of its rewards, and ``tau <- tau + 1``.

    **Wire**: as :class:`~recbole_fedras.compressor.random_rows.RandomRows`.

    **Departures**: the code calls its first term a cosine similarity, but computes the
    difference above; we follow what it computes. Clients keep the rows that they have
    and train on them, where the paper has them sent with each invitation. g is what
    replicas lack of the server's table: the last aggregate, after the server's step.
    With ``replica: personal`` there is no broadcast to learn from, and rows are drawn
    at random.

    Examples
    --------
    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = FCFBTS().encode_broadcast(update, [budget], ctx)[0]
    >>> payload.part_bytes()["items"], len(FCFBTS().decode(payload, ctx))
    (1024, 8)
    """

    def __init__(self, bandit_alpha: float = 0.999, bandit_beta: float = 0.99) -> None:
        if type(bandit_alpha) not in (int, float) or not 0 <= bandit_alpha <= 1:
            raise ConfigError(f"bandit_alpha={bandit_alpha!r} must lie in [0, 1]")
        if type(bandit_beta) not in (int, float) or not 0 <= bandit_beta < 1:
            raise ConfigError(f"bandit_beta={bandit_beta!r} must lie in [0, 1)")
        self.bandit_alpha, self.bandit_beta = bandit_alpha, bandit_beta
        self._selected: Ints | None = None  # by the broadcast before
        self._arms = _Arms(0, 0)

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Learn from the rows of the round before, and choose those of the next."""
        if self._selected is None:  # the first downlink chose without a memory
            self._selected = update.ids.numpy()
            self._arms = _Arms(ctx.n_items, ctx.dim)
        dense = np.zeros((ctx.n_items, ctx.dim))
        dense[update.ids.numpy()] = update.rows.numpy()
        rates = self.bandit_alpha, self.bandit_beta
        self._arms.learn(self._selected, dense[self._selected], *rates)
        payloads = super().encode_broadcast(update, budgets, ctx)
        chosen = [payload.rows("selected", ctx.n_items) for payload in payloads]
        self._selected = max(chosen, key=len)
        return payloads

    def _scores(self, ctx: RoundContext) -> Floats:
        return self._arms.draw(super()._scores(ctx))

    def state_dict(self) -> dict[str, Any]:
        """Return what the bandit knows."""
        if self._selected is None:
            return {}
        arms = {name: torch.tensor(value) for name, value in vars(self._arms).items()}
        return {"selected": torch.tensor(self._selected), "arms": arms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._selected = state["selected"].numpy().copy() if state else None
        self._arms = _Arms(0, 0)
        for name, value in state.get("arms", {}).items():
            setattr(self._arms, name, value.numpy().copy())


class _Arms:
    """What is known of each row: its last gradient, their squares, its rewards."""

    def __init__(self, n_items: int, dim: int) -> None:
        self.gradients: Floats = np.zeros((n_items, dim))
        self.squares: Floats = np.zeros(
            (n_items, dim)
        )  # running mean, not bias-corrected
        self.counts = np.zeros(n_items)  # rewards so far: tau is one more
        self.rewards = np.zeros(n_items)  # their mean
        self.mean: Floats = np.zeros(n_items)  # of the posterior
        self.round: Floats = np.zeros(())

    def draw(self, normal: Floats) -> Floats:
        """Make values of the posteriors of standard Gaussian ones."""
        values: Floats = self.mean + normal / np.sqrt(1 + self.counts)
        return values

    def learn(self, chosen: Ints, gradients: Floats, alpha: float, beta: float) -> None:
        """Reward the chosen rows for their gradients, shape (n_chosen, dim)."""
        self.round = t = self.round + 1
        before = self.gradients[chosen]
        self.gradients[chosen] = gradients
        # Rows that were not chosen count with the gradient that they had last.
        self.squares = beta * self.squares + (1 - beta) * self.gradients**2
        usual = self.squares[chosen] / (1 - beta**t)
        far = np.abs(usual - gradients).sum(axis=1)
        other = np.abs(before - gradients).sum(axis=1)
        reward = (1 - alpha) * t * far + alpha / t * other
        reward /= reward.max(initial=0) or 1.0

        precision = 1 + self.counts[chosen]
        self.counts[chosen] += 1
        n = self.counts[chosen]
        self.rewards[chosen] += (reward - self.rewards[chosen]) / n
        total = precision * self.mean[chosen] + n * self.rewards[chosen]
        self.mean[chosen] = total / (precision + n)
