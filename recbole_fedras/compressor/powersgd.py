"""PowerSGD: one step of power iteration from where the last one ended."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recbole_fedras.compressor.base import Budget, RoundContext, RowUpdate
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.wire.payload import Payload


class PowerSGD(SVD):
    """Low-rank factors by one power iteration, warm-started, with error feedback.

    Source: Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient
    Compression for Distributed Optimization" (NeurIPS 2019), read as its released code
    (epfml/powersgd, ``RankKReducer`` of ``paper-code``). Of rows X (n x d) and a start
    Q (d x r), ``P = orth(X Q)`` and ``Q = X' P`` are sent; ``P Q'`` is what arrives.
    The Q sent is the next round's start, so that the iteration goes on from round to
    round. The rank is ``r = floor(d (1 - CR))``. Its YAML file turns error feedback on
    in both directions, which the method relies on.

    Notes
    -----
    There, workers agree on P before they find Q: two exchanges a step. Here a client
    has one message. What they share instead is where they start: the server compresses
    its aggregate by this method too, and the Q of that downlink, which every
    participant has just been sent, is the start of all of them. It costs no byte.
    Before there is one, or where the downlink is not of this method, all start from
    one Gaussian matrix, drawn from the shared seed.

    P and Q take O(n d r) time, where the best factors of that rank
    (:class:`~recbole_fedras.compressor.svd.SVD`) take O(n d^2).

    **Wire**: as :class:`~recbole_fedras.compressor.svd.SVD`, with P as ``left`` and Q'
    as ``query``: ``4 r (n + d) + rows_size(n, N)`` bytes and framing.

    **Departures**: each client has a P of its own, so that the mean of updates is of
    higher rank than r; there all workers share one and the mean is of rank r. P is
    orthonormalised by a QR decomposition, as in their newer code. With ``replica:
    personal`` the server compresses for each client alone and starts afresh each time.

    Examples
    --------
    Rank 4, ``4 r (n + d)`` bytes of factors; a second broadcast of the same update
    starts where the first one ended, and errs less:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> server = PowerSGD()
    >>> first, second = (
    ...     server.encode_broadcast(update, [budget], ctx)[0] for _ in range(2)
    ... )
    >>> first.part_bytes()["items"]
    1536
    >>> def error(payload):
    ...     return float((PowerSGD().decode(payload, ctx).rows - update.rows).norm())
    >>> error(second) < error(first)
    True
    """

    _right = "query"

    def __init__(self) -> None:
        self._query: Tensor | None = None  # (r, d), of the last broadcast

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Iterate once, from what the sender was sent."""
        query = None
        if ctx.downlink is not None and self._right in ctx.downlink:
            query = torch.tensor(ctx.downlink.floats(self._right, None, ctx.dim))
        return self._iterate(update, budget, ctx, query)

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Iterate once, from the broadcast before; keep the widest tier's end."""
        payloads = [
            self._iterate(update, budget, ctx, self._query) for budget in budgets
        ]
        sent = [payload for payload in payloads if self._right in payload]
        ends = [payload.floats(self._right, None, ctx.dim) for payload in sent]
        if ends:
            self._query = torch.tensor(max(ends, key=len))
        return payloads

    def _iterate(
        self,
        update: RowUpdate,
        budget: Budget,
        ctx: RoundContext,
        query: Tensor | None,
    ) -> Payload:
        def factors(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
            start = _start(query, rank, ctx)
            exact = rows.double()
            left, _ = torch.linalg.qr(exact @ start.T)
            return left.to(rows.dtype), (left.T @ exact).to(rows.dtype)

        return self._encode(update, budget, ctx, factors)

    def state_dict(self) -> dict[str, Any]:
        """Return where the next broadcast starts."""
        return {"query": None if self._query is None else self._query.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._query = state["query"]


def _start(query: Tensor | None, rank: int, ctx: RoundContext) -> Tensor:
    """Return where to start, shape (rank, dim): what there is, then random rows."""
    drawn = ctx.shared_generator().standard_normal((rank, ctx.dim))
    start = torch.from_numpy(drawn)
    if query is not None:
        # Lengths of rows mean nothing: X Q is orthonormalised.
        known = query[:rank].double()
        start[: len(known)] = known
    return start
