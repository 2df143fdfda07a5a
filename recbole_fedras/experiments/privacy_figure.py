"""A figure of three things: privacy, quality and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from recbole_fedras.experiments.panels import (
    MARKERS,
    Row,
    distinct,
    panels,
    styles,
    with_legend,
)

#: What attackers find, beside which the other metrics are quality.
_FOUND = ("AUC", "precision")

#: Marks of the least and the most bytes, in points across.
_SMALL, _LARGE = 5.0, 20.0


def draw_privacy(rows: Sequence[Row], xlabel: str | None) -> Figure:
    """Draw quality against the AUC of the strongest attacker; marks grow with bytes.

    Methods differ in colour, settings in markers, the area of a mark is as the
    megabytes sent. Of several metrics of quality it is the first.

    Parameters
    ----------
    rows : sequence of dict
        ``dataset``, ``method``, ``setting``, ``metric``, ``ours``, and megabytes.
    xlabel : str or None
    """
    quality = next(row["metric"] for row in rows if row["metric"] not in _FOUND)
    settings = distinct(row["setting"] for row in rows)
    datasets = distinct(row["dataset"] for row in rows)
    auc = {_place(row): row["ours"] for row in rows if row["metric"] == "AUC"}
    shown = [row for row in rows if row["metric"] == quality and isfinite(row["ours"])]
    most = max((_megabytes(row) for row in shown), default=1.0)
    figure, every = panels(datasets, [quality], xlabel, (6, 4))
    for (dataset, _), panel in every:
        for method, style in styles(rows):
            for row in shown:
                if (row["dataset"], row["method"]) != (dataset, method):
                    continue
                size = max(_SMALL, _LARGE * sqrt(_megabytes(row) / most))
                marker = MARKERS[settings.index(row["setting"]) % len(MARKERS)]
                look = style | {"marker": marker, "ms": size, "ls": "", "alpha": 0.7}
                panel.plot(auc[_place(row)], row["ours"], **look)
        panel.set_xlim(min(0.5, *auc.values()) - 0.02, 1.02)
    return with_legend(figure, _keys(rows, settings, most))


def _place(row: Row) -> tuple[str, str, str]:
    return row["dataset"], row["method"], row["setting"]


def _megabytes(row: Row) -> float:
    return float(row["uplink MB"] + row["downlink MB"])


def _keys(rows: Sequence[Row], settings: list[str], most: float) -> list[Line2D]:
    """Draw what the legend shows: methods, settings, and what the largest mark is."""
    keys = [
        Line2D([], [], label=method, **style | {"ls": "", "marker": "s"})
        for method, style in styles(rows)
    ]
    grey: dict[str, Any] = {"color": "grey", "ls": ""}
    keys += [
        Line2D([], [], marker=marker, label=setting, **grey)
        for setting, marker in zip(settings, MARKERS, strict=False)
    ]
    return [*keys, Line2D([], [], marker="", label=f"largest: {most:,.0f} MB", **grey)]
