"""CountSketch: values are added up in random buckets, with random signs."""

from copy import copy
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    put_update_rows,
    row_update,
)
from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.bits import Ints
from recbole_fedras.wire.payload import Layout, Payload

Floats = NDArray[np.float64]


class CountSketch(Compressor):
    """Linear: the sketch of a sum of updates is the sum of their sketches.

    Source: FetchSGD (Rothchild et al., "FetchSGD: Communication-Efficient Federated
    Learning with Sketching", ICML 2020), of which we have read descriptions and the
    code of others only. Every value x of the table has a bucket and a sign,
    which everybody draws alike in every round; the ``w = floor(N d (1 - CR))`` buckets
    hold the sums of ``sign x``. A server can add up what a cohort sends, also
    under encryption or masks, and decode the sum alone.

    Notes
    -----
    The receiver returns the values of least norm that give the sketch: with m values of
    the sent rows in a bucket, each is ``sign bucket / m``. That is the projection of
    the update on what the sketch can see, so the error is never larger than the update:
    of m equally large ones a share of 1 / m of the energy arrives.

    **Wire**: ``rows`` the n changed rows, ``sketch`` float32 (w,): ``4 w + rows_size(n,
    N)`` bytes and framing, however few rows there are. Where all bytes are budgeted, w
    is the largest number that always fits; as sketches must be of one size, bytes are
    left over. What is linear is ``sketch``; ``rows`` of a sum are those of any of
    them. Sketches of unequal rates (``bandwidth``) do not add up.

    **Departures**: FetchSGD hashes by several functions, takes the median of what
    they estimate, keeps the largest few values of the sum, and has momentum and
    error feedback at the server, on sketches. Here there is one function, as all
    values of an update are wanted; feedback is ``uplink_feedback``. Buckets are filled
    evenly (a permutation of all values, taken modulo w), so that with as many buckets
    as values nothing is lost. Ids are sent, where a sketch alone would do for values
    that are few and large.

    Examples
    --------
    An eighth of the values, in float32; sketches add up:

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> ones, others = rng.standard_normal((2, 64, 32)).astype(np.float32)
    >>> ids, budget = np.arange(64), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> def sketch(rows):
    ...     payload = CountSketch().encode(row_update(ids, rows), budget, ctx)
    ...     return payload.floats("sketch", None)
    >>> sketch(ones).nbytes
    1024
    >>> np.allclose(sketch(ones) + sketch(others), sketch(ones + others), atol=1e-5)
    True
    """

    linear = True

    def validate(self, budget: Budget) -> None:
        """Require at least one bucket."""
        budget.require("number of buckets", _buckets(budget))

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Add values up in their buckets."""
        n_buckets = _buckets(budget)
        buckets, signs = _places(update.ids.numpy(), n_buckets, ctx)
        values = signs * update.rows.numpy()
        sketch = np.bincount(buckets.ravel(), values.ravel(), n_buckets)
        payload = put_update_rows(Payload(), update, ctx.n_items)
        return payload.put_floats("sketch", sketch.astype(np.float32))

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Share each bucket among its values."""
        ids = payload.rows("rows", ctx.n_items)
        sketch = payload.floats("sketch", None).astype(np.float64)
        if not 1 <= len(sketch) <= ctx.n_items * ctx.dim:
            raise PayloadError(f"field 'sketch': {len(sketch)} buckets")
        buckets, signs = _places(ids, len(sketch), ctx)
        shares = sketch / np.bincount(buckets.ravel(), minlength=len(sketch)).clip(1)
        return row_update(ids, (signs * shares[buckets]).astype(np.float32))


def _buckets(budget: Budget) -> int:
    """Everybody's number of buckets: what fits if all rows change, or all but one."""

    def of_rows(n: int) -> int:
        ids = Layout().rows("rows", n, budget.n_items)

        def layout(count: int) -> Layout:
            return copy(ids).floats("sketch", count)

        return budget.most(budget.values, budget.n_items * budget.dim, layout)

    return budget.least(of_rows)


def _places(ids: Ints, n_buckets: int, ctx: RoundContext) -> tuple[Ints, Floats]:
    """Bucket and sign of each value of some rows, both of shape (n, dim)."""
    order, signs = _draw(ctx.seed, ctx.round, ctx.n_items, ctx.dim)
    return order[ids] % n_buckets, signs[ids]


@lru_cache(maxsize=2)
def _draw(seed: int, round: int, n_items: int, dim: int) -> tuple[Ints, Floats]:
    """Draw a permutation of all values of the table, and their signs."""
    rng = RoundContext(round, seed, n_items, dim).shared_generator()
    order = rng.permutation(n_items * dim).reshape(n_items, dim)
    return order, np.where(rng.integers(0, 2, (n_items, dim)), 1.0, -1.0)
