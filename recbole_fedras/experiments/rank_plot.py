"""The critical-difference diagram: which methods' ranks are told apart."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recbole_fedras.experiments.statistics import Order


def draw_order(order: Order) -> Figure:
    """Draw methods at their mean ranks; a bar joins those that are not told apart."""
    places = np.argsort(order.ranks, kind="stable")
    ranks = np.array(order.ranks)[places]
    bars = joined(ranks.tolist(), order.critical)
    figure = Figure(figsize=(6, 1.2 + 0.28 * len(ranks)), layout="constrained")
    panel = figure.subplots()
    for height, (place, rank) in enumerate(zip(places, ranks, strict=True)):
        panel.plot([rank, rank], [-1 - height, 0], "k-", lw=0.8)
        label = f"  {order.methods[place]} ({rank:.2f})"
        panel.text(rank, -1 - height, label, va="center", fontsize="small")
    for index, (first, last) in enumerate(bars):
        panel.plot([first, last], [-0.25 - 0.2 * index] * 2, "k-", lw=3)
    _frame(panel, order)
    return figure


def _frame(panel: Axes, order: Order) -> None:
    panel.set_xlim(0.9, len(order.ranks) + 1.5)
    panel.set_xticks(range(1, len(order.ranks) + 1))
    panel.xaxis.tick_top()
    panel.set_yticks([])
    panel.spines[["left", "right", "bottom"]].set_visible(False)
    panel.set_xlabel(
        f"mean rank over {order.n_cells} cells; Friedman's test: p = {order.p:.2g};\n"
        f"{order.critical:.2f} apart: told apart at 5 %, by Nemenyi's test"
    )


def joined(ranks: list[float], critical: float) -> list[tuple[float, float]]:
    """Return the longest stretches of increasing ranks shorter than ``critical``.

    Examples
    --------
    >>> joined([1.0, 1.5, 2.2, 4.0], 1.0)
    [(1.0, 1.5), (1.5, 2.2)]
    """
    found: list[tuple[float, float]] = []
    for first in ranks:
        last = max(rank for rank in ranks if rank - first < critical)
        if last > first and not (found and found[-1][1] >= last):
            found.append((first, last))
    return found
