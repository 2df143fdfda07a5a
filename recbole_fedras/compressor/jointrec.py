"""JointRec: low-rank factors of the update, rounded at random to 8 bits a value."""

from collections.abc import Sequence
from math import floor

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    fits_raw,
    kept,
    put_update_rows,
    raw_payload,
    raw_update,
    row_update,
)
from recbole_fedras.compressor.svd import leading_right_vectors
from recbole_fedras.wire.payload import Layout, Payload

Floats = NDArray[np.float32]

_LEVELS = 256  # 8 bits


class JointRec(Compressor):
    """Truncated SVD of a client's update, both factors quantised probabilistically.

    Source: Duan et al., "JointRec: A Deep-Learning-Based Joint Cloud Video
    Recommendation Framework for Mobile IoT" (IEEE Internet of Things Journal 2020), as
    FedRAS (KDD 2025, appendix A.1 and Table 5) compares with it; there is no code. A
    factor's value x becomes
    ``floor((x - min) / s) + Bernoulli(rest)`` steps ``s = (max - min) / 255``, so that
    its expectation is exact. A value takes a quarter of a float, so the rank is
    ``r = floor(4 d (1 - CR))``, d at most.

    Notes
    -----
    **Wire**: ``rows`` the n changed rows, ``left`` (n, r) and ``right`` (r, d) at 8
    bits, ``ranges`` float32 (2, 2), least and largest of each factor:
    ``r (n + d) + 16 + rows_size(n, N)`` bytes and framing. Levels and ranges are booked
    as items. Updates for which that is no smaller travel as they are (``values``).

    **Departures**: the source is an abstract; factors are X V and V' with V the leading
    right singular vectors. As there, the downlink is not compressed, but where all
    bytes are budgeted: then r is the largest rank that fits, both ways, and what is
    left is not used.

    Examples
    --------
    Rank 16, a byte for each of its ``r (n + d)`` values, and four floats:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = JointRec().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"], JointRec().decode(payload, ctx).rows.shape
    (1552, torch.Size([64, 32]))
    """

    threaded = True

    def validate(self, budget: Budget) -> None:
        """Require a rank of at least one."""
        budget.require("rank", budget.least(lambda n: self._rank(n, budget)))

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Factorise, and round at random."""
        # r (n + d) bytes of levels and 16 of ranges, or 4 n d of the rows as they are.
        n, rank = len(update), self._rank(len(update), budget)
        if rank * (n + ctx.dim) + 16 >= 4 * n * ctx.dim or fits_raw(n, budget):
            return raw_payload(update, ctx.n_items)
        # The left factor carries the singular values, so it is the wider one in range;
        # each factor has a range, hence steps, to itself.
        right = leading_right_vectors(update.rows, rank)  # (r, d)
        left = update.rows @ right.T  # (n, r)
        rng = ctx.generator()
        payload = put_update_rows(Payload(), update, ctx.n_items)
        ranges = []
        for name, factor in (("left", left), ("right", right)):
            levels, low, high = _quantise(factor.numpy(), rng)
            payload.put_ints(name, levels, _LEVELS, "items")
            ranges.append((low, high))
        return payload.put_floats("ranges", np.array(ranges, np.float32))

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Send the aggregate as it is, unless all bytes are budgeted."""
        return [
            raw_payload(update, ctx.n_items)
            if budget.n_bytes is None
            else self.encode(update, budget, ctx)
            for budget in budgets
        ]

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Multiply the factors."""
        if "values" in payload:
            return raw_update(payload, ctx)
        ids = payload.rows("rows", ctx.n_items)
        right = payload.ints("right", _LEVELS, None, ctx.dim)
        left = payload.ints("left", _LEVELS, len(ids), len(right))
        ranges = payload.floats("ranges", 2, 2).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # whatever was received
            factors = [
                low + levels * ((high - low) / (_LEVELS - 1))
                for levels, (low, high) in zip((left, right), ranges, strict=True)
            ]
            return row_update(ids, (factors[0] @ factors[1]).astype(np.float32))

    @staticmethod
    def _rank(n: int, budget: Budget) -> int:
        def layout(rank: int) -> Layout:
            whole = Layout().rows("rows", n, budget.n_items)
            whole.ints("left", _LEVELS, n, rank).ints(
                "right", _LEVELS, rank, budget.dim
            )
            return whole.floats("ranges", 2, 2)

        # A value takes a byte, a quarter of a float: four times SVD's rank.
        nominal = floor(4 * budget.dim * kept(budget.compression_rate))
        return budget.most(nominal, budget.dim, layout)


def _quantise(
    factor: Floats, rng: np.random.Generator
) -> tuple[NDArray[np.int64], float, float]:
    """Round to 256 levels at random; return levels, least and largest value."""
    # In units of the step, rounded down after adding a uniform number: up with the
    # probability of the fraction, so that errors of many clients average out. An empty
    # or constant factor has a range of 0, and any step will do.
    low, high = float(factor.min(initial=0)), float(factor.max(initial=0))
    steps = (factor.astype(np.float64) - low) * ((_LEVELS - 1) / ((high - low) or 1.0))
    levels = np.floor(steps + rng.random(steps.shape)).astype(np.int64)
    return levels.clip(0, _LEVELS - 1), low, high
