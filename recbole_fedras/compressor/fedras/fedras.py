"""FedRAS: a few shared update directions, and the index of one for each item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, log2
from typing import Any

import numpy as np

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    fits_raw,
    put_update_rows,
    raw_payload,
    raw_update,
    row_update,
)
from recbole_fedras.compressor.fedras.actions import ACTIONS
from recbole_fedras.compressor.fedras.division import Floats, Ints
from recbole_fedras.compressor.fedras.kmeans import BACKENDS, kmeans, sklearn_kmeans
from recbole_fedras.compressor.fedras.splitting import split_groups
from recbole_fedras.errors import ConfigError
from recbole_fedras.wire.payload import Layout, Payload

# Share of a budget of all bytes that may be left where assignments are coded, and how
# often another number of groups is tried to leave no more.
_UNUSED, _TRIES = 0.005, 5


class FedRAS(Compressor):
    """Federated recommendation with action sharing.

    Source: Lu et al., "Gradients as an Action: Towards Communication-Efficient
    Federated Recommender Systems via Adaptive Action Sharing" (KDD 2025, arXiv
    2507.08842), sections 4.2 and 4.3 and Algorithm 1. Rows of an update are clustered;
    a group's centroid is an *action*, and every row is sent as the index of its action.
    With ``C_e = floor(N (1 - CR))``:

    * Uplink: a client with more than ``e_u`` changed rows clusters them into ``e_u``
      groups by k-means; otherwise its rows travel as they are.
    * Downlink (adaptive clustering): k-means into ``C_i = floor(C_e (1 - alpha))``
      groups, of which the worst is split until its quality reaches the threshold or
      ``C_m = floor(C_e (1 + alpha))`` groups exist
      (:func:`~recbole_fedras.compressor.fedras.splitting.split_groups`). The threshold
      is the mean, over earlier rounds, of the worst quality at exactly ``C_e`` groups.
    * Unequal bandwidth: splits nest, so each tier gets the snapshot of the largest
      count that fits it.

    Parameters
    ----------
    alpha : float
        Half width of the range of group counts, in [0, 1).
    clustering : {'adaptive', 'fixed'}
        ``fixed`` sends exactly ``C_e`` k-means groups: the paper's FedRAS-F (section
        5.4.1).
    kmeans : {'fast', 'sklearn'}
        Implementation, see :func:`~recbole_fedras.compressor.fedras.kmeans.kmeans`.
    kmeans_iterations : int
        Passes over all rows at most; Lloyd iterations of scikit-learn's.
    actions : {'float32', 'int8', 'shape'}
        How actions travel. Ours beyond the paper: ``int8`` rounds them to multiples of
        one step, so that four times as many cost the same; ``shape`` sends directions
        at 8 bits a value and, with each row, how far it goes along its own, 8 bits on a
        logarithmic scale (gain-shape vector quantisation).

    Notes
    -----
    **Wire**: ``rows`` the n changed rows, ``actions`` float32 (K, d), ``assignments``
    (n,) at ceil(log2 K) bits: ``4 K d + ceil(n ceil(log2 K) / 8) + rows_size(n, N)``
    bytes and framing, at most. ``int8``: instead of ``actions``, ``levels`` (K, d) at 8
    bits and ``step`` float32. ``shape``: the same, ``gains`` (n,) at 8 bits,
    ``gain_range`` float32 (2,). K is the largest number for which these, booked as
    items, take no more than ``4 C_e d`` bytes. Updates of at most C_e rows travel as
    ``rows``, ``values``. Where all bytes are budgeted, K is the largest number that
    fits.

    Where indices are an eighth of the actions' bytes or more, they are coded by how
    large groups are, if that is smaller; ``sizes`` and ``repeats`` tell that, see
    :func:`~recbole_fedras.compressor.fedras.assignments.put_assignments`. If all bytes
    are budgeted, the bytes saved go into more groups: k-means runs again, adaptive
    clustering splits on. Where one group takes more than 0.5 % of such a budget,
    nothing is coded.

    **Departures**: rows that did not change belong to no group (the paper counts
    centroids only, so it does not say). The paper stops when quality "falls below" the
    threshold, but quality rises by splitting: here it stops when it reaches it. With
    unequal bandwidth the paper adjusts alpha to reach the range of rates (section 5.5),
    and does not say to what: k-means starts at ``floor((1 - alpha) min e_u)``, ``C_e``
    and ``C_m`` are the largest ``e_u`` below the number of changed rows (tiers above it
    get the rows as they are). ``fast`` k-means draws no seeds and exchanges rows one by
    one, until a pass gains less than 2 % of the error. Where rows x groups x dim exceed
    2^30 they are exchanged within cells, at more error (docs/performance.md); groups of
    more than 2,048 rows are split around a pair that sweeps find.

    Examples
    --------
    A client's 8 actions of 32 floats, and 3 bits for the action of each of 64 rows:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = FedRAS().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"], payload.part_bytes()["ids"]
    (1024, 24)
    >>> FedRAS().decode(payload, ctx).rows.unique(dim=0).shape
    torch.Size([8, 32])

    The server's downlink, whose threshold lasts from round to round:

    >>> server = FedRAS()
    >>> [payload] = server.encode_broadcast(update, [budget], ctx)
    >>> server.metrics()["groups"], server.state_dict()["threshold_count"]
    (8.0, 1)
    """

    threaded = True

    def __init__(
        self,
        alpha: float = 0.2,
        clustering: str = "adaptive",
        kmeans: str = "fast",
        kmeans_iterations: int = 10,
        actions: str = "float32",
    ) -> None:
        if type(alpha) not in (int, float) or not 0 <= alpha < 1:
            raise ConfigError(f"alpha={alpha!r} must be a number in [0, 1)")
        if clustering not in ("adaptive", "fixed"):
            raise ConfigError(
                f"clustering={clustering!r} must be 'adaptive' or 'fixed'"
            )
        if kmeans not in BACKENDS:
            raise ConfigError(f"kmeans={kmeans!r} must be one of {BACKENDS}")
        if type(kmeans_iterations) is not int or kmeans_iterations < 1:
            raise ConfigError(
                f"kmeans_iterations={kmeans_iterations!r} must be an integer from 1"
            )
        if actions not in ACTIONS:
            raise ConfigError(f"actions={actions!r} must be one of {tuple(ACTIONS)}")
        self.alpha = alpha
        self.clustering = clustering
        self.kmeans = kmeans
        self.kmeans_iterations = kmeans_iterations
        self.actions = actions
        self._code = ACTIONS[actions]
        self._threshold_sum = 0.0
        self._threshold_count = 0
        self._metrics: dict[str, float] = {}

    @property
    def threshold(self) -> float | None:
        """Mean of the worst qualities recorded so far; None before the first."""
        if not self._threshold_count:
            return None
        return self._threshold_sum / self._threshold_count

    def validate(self, budget: Budget) -> None:
        """Require at least one group, before and after the range is applied."""
        n_groups = budget.least(lambda n: self._groups(n, budget))
        budget.require("number of groups", n_groups)
        if self.clustering == "adaptive":
            first = floor(n_groups * (1 - self.alpha))
            budget.require(f"first number of groups (alpha={self.alpha})", first)

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Cluster a client's rows into e_u groups, if there are more of them."""
        return self._encoded(update, budget, ctx)[0]

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Cluster the aggregate adaptively; one snapshot per tier."""
        # Tiers whose budget holds all rows get them as they are, without groups.
        clustered = [one for one in budgets if not self._is_raw(update, one)]
        if self.clustering == "fixed" or not clustered:
            encoded = [self._encoded(update, budget, ctx) for budget in budgets]
            self._metrics = {"groups": float(max(count for _, count in encoded))}
            return [payload for payload, _ in encoded]

        # C_e is the largest tier's; k-means starts below the smallest's (C_i). A single
        # nominal budget may be exceeded, up to C_m, as in the paper. Several budgets
        # are limits, and so are bytes, up to which groups are split whatever they are.
        limits = [self._groups(len(update), budget) for budget in clustered]
        first = self._kmeans(update, self._first(min(limits)), ctx)
        threshold, recorded = self.threshold, max(limits)
        n_max = recorded
        if budgets[0].n_bytes is not None:
            threshold = np.inf
            most = [self._most(update, budget, ctx, first) for budget in clustered]
            n_max = max(recorded, *most)
        elif len(budgets) == 1:
            n_max = floor(recorded * (1 + self.alpha))
            limits = [n_max]
        rows = update.rows.numpy()
        groups = split_groups(rows, first[1], threshold, recorded, n_max)
        # Splits nest: a tier gets the groups as they were at the count that fits it.
        reached = groups.n_adaptive
        sent = [
            self._filled(
                update, one, ctx, groups.snapshot, min(limit, reached), reached
            )
            for one, limit in zip(clustered, limits, strict=True)
        ]
        self._threshold_sum += groups.worst_quality
        self._threshold_count += 1
        self._metrics = {
            "groups": float(max(count for _, count in sent)),
            "worst_quality": groups.worst_quality,
        }
        of_groups = iter(sent)
        return [
            next(of_groups)[0] if one in clustered else raw_payload(update, ctx.n_items)
            for one in budgets
        ]

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Give every row its action."""
        if "values" in payload:
            return raw_update(payload, ctx)
        ids = payload.rows("rows", ctx.n_items)
        return row_update(ids, self._code.get(payload, len(ids), ctx.dim))

    def state_dict(self) -> dict[str, Any]:
        """Return the record that the threshold is the mean of."""
        return {
            "threshold_sum": self._threshold_sum,
            "threshold_count": self._threshold_count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the record."""
        self._threshold_sum = state["threshold_sum"]
        self._threshold_count = state["threshold_count"]

    def metrics(self) -> dict[str, float]:
        """Return the last downlink's groups and the worst quality recorded with it."""
        return self._metrics

    def _encoded(
        self, update: RowUpdate, budget: Budget, ctx: RoundContext
    ) -> tuple[Payload, int]:
        """Return a payload by k-means, and its number of groups, or of rows as such."""
        if self._is_raw(update, budget):
            return raw_payload(update, ctx.n_items), len(update)

        def cluster(n_groups: int) -> tuple[Floats, Ints]:
            return self._kmeans(update, n_groups, ctx)

        n_groups = self._groups(len(update), budget)
        return self._filled(update, budget, ctx, cluster, n_groups, len(update) - 1)

    def _filled(
        self,
        update: RowUpdate,
        budget: Budget,
        ctx: RoundContext,
        cluster: Callable[[int], tuple[Floats, Ints]],
        n_groups: int,
        most: int,
    ) -> tuple[Payload, int]:
        """Return a payload of ``n_groups``, or of as many more as fit; and how many.

        So many fit with indices of whole bits. Coded ones leave bytes for more groups,
        up to ``most``, unless rows are too much alike even for ``n_groups``.
        """
        found = cluster(n_groups)
        payload, count = self._payload(update, budget, ctx, *found), len(found[0])
        if budget.n_bytes is None or "sizes" not in payload:
            return payload, count
        # Where the bytes of a group were more than expected, a line through both sizes
        # tells, with a twentieth to spare.
        each = self._bytes_of_group(len(update), count, budget)
        for _ in range(_TRIES):
            spare = budget.n_bytes - payload.size
            more = min(floor(spare / each), most - count)
            if count < n_groups or more < 1 or spare < _UNUSED * budget.n_bytes:
                break
            found = cluster(count + more)
            larger = self._payload(update, budget, ctx, *found)
            if larger.size > budget.n_bytes:
                each = 1.05 * (larger.size - payload.size) / more
            else:
                n_groups, payload, count = count + more, larger, len(found[0])
        return payload, count

    def _most(
        self,
        update: RowUpdate,
        budget: Budget,
        ctx: RoundContext,
        first: tuple[Floats, Ints],
    ) -> int:
        """Return how many groups may fit if some are split: no index gets shorter."""
        payload = self._payload(update, budget, ctx, *first)
        spare = (budget.n_bytes or 0) - payload.size
        more = spare // (self._code.value_bytes * budget.dim)
        return min(len(first[0]) + more, len(update) - 1)

    def _bytes_of_group(self, n: int, n_groups: int, budget: Budget) -> float:
        """Return what one more group of n rows takes, if their groups are coded."""
        # An action; and indices become longer, by log2(1 + 1 / n_groups) bits if groups
        # stay alike, by up to twice as much in updates that we have seen.
        indices = 2 * n * log2(1 + 1 / n_groups) / 8
        return self._code.value_bytes * budget.dim + indices

    def _groups(self, n: int, budget: Budget) -> int:
        """Return C_e or e_u for an update of n rows."""

        def layout(n_groups: int) -> Layout:
            ids = Layout().rows("rows", n, budget.n_items)
            return self._code.layout(ids, n, n_groups, budget.dim)

        most = max(n - 1, 1)  # as many as rows would be no clustering
        return budget.most(self._code.nominal(n, budget), most, layout)

    def _is_raw(self, update: RowUpdate, budget: Budget) -> bool:
        if budget.n_bytes is None:
            return len(update) <= budget.rows
        return fits_raw(len(update), budget)

    def _first(self, n_groups: int) -> int:
        """Return C_i, the number of groups that k-means starts with."""
        return max(floor(n_groups * (1 - self.alpha)), 1)  # few rows: few groups

    def _kmeans(
        self, update: RowUpdate, n_groups: int, ctx: RoundContext
    ) -> tuple[Floats, Ints]:
        rows, passes = update.rows.numpy(), self.kmeans_iterations
        if self.kmeans == "sklearn":
            return sklearn_kmeans(rows, n_groups, passes, ctx.generator())
        return kmeans(rows, n_groups, passes)

    def _payload(
        self,
        update: RowUpdate,
        budget: Budget,
        ctx: RoundContext,
        actions: Floats,
        assignments: Ints,
    ) -> Payload:
        payload = put_update_rows(Payload(), update, ctx.n_items)
        # Of few bytes a group takes too large a share to spend what coding saves.
        group = self._bytes_of_group(len(update), len(actions), budget)
        coded = budget.n_bytes is None or group <= _UNUSED * budget.n_bytes
        self._code.put(payload, update.rows.numpy(), actions, assignments, coded)
        return payload
