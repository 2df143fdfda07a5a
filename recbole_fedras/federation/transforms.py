"""What may happen to updates on their way: clipping, noise, and what you add."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from recbole_fedras.compressor.base import REAL, RoundContext, RowUpdate


class SharedUpdate(NamedTuple):
    """A change of the shared parameters.

    Attributes
    ----------
    items : RowUpdate
        Of the item table, row-sparse.
    theta : Tensor, shape (n_theta,)
        Of the network, flattened.
    """

    items: RowUpdate
    theta: Tensor

    def norm(self) -> float:
        """Return the Euclidean norm of all values together."""
        square = self.items.rows.double().square().sum()
        return float((square + self.theta.double().square().sum()).sqrt())

    def clipped(self, bound: float) -> SharedUpdate:
        """Return ``update min(1, bound / |update|)``."""
        norm = self.norm()
        if norm <= bound:
            return self
        rows = RowUpdate(self.items.ids, self.items.rows * (bound / norm))
        return SharedUpdate(rows, self.theta * (bound / norm))


class Transform:
    """Changes updates where they arise, before they are encoded or applied.

    A subclass overrides some methods, and never writes to what it is given; its
    constructor parameters become config keys. The list ``transforms`` names those that
    ship, ``transform_class`` one of your own, or several.

    Examples
    --------
    >>> import torch
    >>> class Halve(Transform):
    ...     def on_client(self, update, ctx):
    ...         rows = RowUpdate(update.items.ids, update.items.rows / 2)
    ...         return SharedUpdate(rows, update.theta / 2)
    >>> ctx = RoundContext(round=0, seed=1, n_items=2, dim=1, sender=5)
    >>> rows = RowUpdate(torch.tensor([1]), torch.tensor([[4.0]]))
    >>> Halve().on_client(SharedUpdate(rows, torch.zeros(0)), ctx).norm()
    2.0
    """

    #: What tables may hold whose updates it changes, see
    #: ``FederatedRecommender.table_values``; None: anything.
    table_values: ClassVar[tuple[str, ...] | None] = None

    #: Whether the number of a client's samples is as private as its update: messages
    #: then say 1.
    hides_samples: ClassVar[bool] = False

    def on_client(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Change a client's update, after local training and before error feedback.

        ``ctx.sender`` is the client, ``ctx.generator()`` draws its random numbers.
        """
        return update

    def on_arrival(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Change a client's update at the server, as decoded, before it is combined.

        Clients come in increasing order. It binds those too that do not keep to what
        :meth:`on_client` says.
        """
        return update

    def on_aggregate(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Change the combined update, before the server steps."""
        return update

    def state_dict(self) -> dict[str, Any]:
        """Return what lasts from round to round, as plain types: nothing by default.

        It is the server's, part of checkpoints, and restored after a round that failed;
        what clients' objects keep is not.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


class Clip(Transform):
    """Scales an update down to a norm of at most ``clip_norm``.

    Source: McMahan et al., "Learning Differentially Private Recurrent Language Models"
    (ICLR 2018): a user's update is clipped, over all parameters together.

    Parameters
    ----------
    clip_norm : float
        Positive.
    """

    table_values = (REAL,)

    def __init__(self, clip_norm: float = 1.0) -> None:
        if type(clip_norm) not in (int, float) or not 0 < clip_norm < float("inf"):
            raise ValueError(f"clip_norm={clip_norm!r} must be a positive number")
        self.clip_norm = float(clip_norm)

    def on_client(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Return ``update min(1, clip_norm / |update|)``."""
        return update.clipped(self.clip_norm)
