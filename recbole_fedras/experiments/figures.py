"""Figures: what of an exhibit or a comparison is drawn against what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import mean, stdev
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from recbole_fedras.experiments.panels import (
    COLOURS,
    MARKERS,
    distinct,
    panels,
    panels_of,
    scale_by_decades,
    style_of,
    styles,
    with_legend,
)

Row = Mapping[str, Any]


#: Columns of megabytes sent.
_SENT = ("uplink MB", "downlink MB")


class Curve(NamedTuple):
    """One run's evaluated rounds.

    Attributes
    ----------
    dataset, method : str
    rounds : list of dict
        ``round``, bytes so far, ``hours`` in a world and ``valid_{metric}`` of each.
    """

    dataset: str
    method: str
    rounds: list[dict[str, float]]


def draw_settings(rows: Sequence[Row], xlabel: str | None) -> Figure:
    """Draw each metric against an exhibit's settings, with deviations over seeds."""
    figure, every = panels_of(rows, xlabel)
    for panel, shown in every:
        for method, style in styles(rows):
            chosen = [row for row in shown if row["method"] == method]
            values, deviations = _bars(chosen)
            places = [row["setting"] for row in chosen]
            panel.errorbar(places, values, deviations, capsize=3, label=method, **style)
    return with_legend(figure)


def draw_bytes(
    rows: Sequence[Row], xlabel: str | None, counted: Sequence[str] = _SENT
) -> Figure:
    """Draw each metric against megabytes; nothing on the line is beaten.

    Methods differ in colour; settings, if there are several, in markers.

    Parameters
    ----------
    rows : sequence of dict
    xlabel : str or None
    counted : sequence of str
        Columns of megabytes that are added up; by default what is sent.
    """
    figure, every = panels_of(rows, xlabel, (6, 4))
    settings = distinct(row["setting"] for row in rows)
    for panel, shown in every:
        shown = [row for row in shown if isfinite(row["ours"])]  # of any run
        for method, style in styles(rows):
            for row in [row for row in shown if row["method"] == method]:
                if len(settings) > 1:
                    style["marker"] = MARKERS[settings.index(row["setting"])]
                size, (values, deviations) = _sum(row, counted), _bars([row])
                panel.errorbar(size, values, deviations, capsize=3, **style)
        _draw_front(panel, [(_sum(row, counted), row["ours"]) for row in shown])
        scale_by_decades(panel)
    return with_legend(figure, _keys_of_points(rows, settings))


def draw_bars(
    rows: Sequence[Row], xlabel: str | None, label: str = "setting"
) -> Figure:
    """Draw each metric as bars, a group of methods for each value of a label.

    For values that are no numbers: a line between them would say nothing.
    """
    figure, every = panels_of(rows, xlabel, (7, 3))
    for panel, shown in every:
        _draw_groups(panel, shown, label, distinct(row["method"] for row in rows))
    return with_legend(figure)


def draw_metrics(rows: Sequence[Row], xlabel: str | None) -> Figure:
    """Draw metrics side by side, but for those that the paper prints a number of."""
    rows = [row for row in rows if row["paper"] is None]
    methods = distinct(row["method"] for row in rows)
    figure, every = panels(distinct(row["dataset"] for row in rows), [""], xlabel)
    for (dataset, _), panel in every:
        shown = [row for row in rows if row["dataset"] == dataset]
        _draw_groups(panel, shown, "metric", methods)
    return with_legend(figure)


def _draw_groups(
    panel: Axes, rows: Sequence[Row], label: str, methods: Sequence[str]
) -> None:
    """Draw a group of bars for each value of a label, a bar for each method in it."""
    groups = distinct(row[label] for row in rows)
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        chosen = [row for row in rows if row["method"] == method]
        places = [groups.index(row[label]) + index * width for row in chosen]
        values, deviations = _bars(chosen)
        panel.bar(
            places,
            values,
            width,
            yerr=deviations,
            capsize=3,
            label=method,
            color=COLOURS[index % len(COLOURS)],
        )
    middles = [place + 0.4 - width / 2 for place in range(len(groups))]
    panel.set_xticks(middles, [fill(group, 14) for group in groups], fontsize="x-small")


def draw_curves(
    curves: Sequence[Curve],
    metrics: Sequence[str],
    xlabel: str | None,
    against: str = "round",
) -> Figure:
    """Draw each validation metric, with deviations over seeds.

    Parameters
    ----------
    against : {'round', 'megabytes', 'hours'}
        Megabytes so far, everything charged; hours in a described world.
    """
    datasets = distinct(curve.dataset for curve in curves)
    figure, every = panels(datasets, metrics, xlabel)
    for (dataset, metric), panel in every:
        methods = distinct(curve.method for curve in curves)
        for index, method in enumerate(methods):
            chosen = [
                row
                for curve in curves
                if (curve.dataset, curve.method) == (dataset, method)
                for row in curve.rounds
            ]
            by_round = [
                [row for row in chosen if row["round"] == at]
                for at in dict.fromkeys(row["round"] for row in chosen)
            ]
            where = [mean(_place(row, against) for row in rows) for rows in by_round]
            values = [[row[f"valid_{metric}"] for row in rows] for rows in by_round]
            style = style_of(index) | {"label": method}
            _draw_band(panel, where, values, style, 0.6 / max(4, len(methods)))
        panel.set_ylabel(f"{metric}, validation")
        if against == "round":
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            scale_by_decades(panel)
    return with_legend(figure)


def draw_distortion(rows: Sequence[Row], title: str) -> Figure:
    """Draw error against bytes per item, both logarithmic; a line for each method."""
    figure, every = panels([title], ["squared error / energy of the update"],
                             "bytes per item, everything counted", (7, 5))  # fmt: skip
    for _, panel in every:
        for method, style in styles(rows):
            chosen = [row for row in rows if row["method"] == method]
            sizes = [row["bytes_per_item"] for row in chosen]
            errors = [max(row["error"], 1e-12) for row in chosen]
            panel.loglog(sizes, errors, label=method, **style)
    return with_legend(figure)


def _keys_of_points(rows: Sequence[Row], settings: list[str]) -> list[Any]:
    """Draw what a legend of points shows: methods, then settings, then the line."""
    keys = [
        Line2D([], [], label=method, **style | {"ls": ""})
        for method, style in styles(rows)
    ]
    if len(settings) > 1:
        for key in keys:
            key.set_marker("s")
        keys += [
            Line2D([], [], color="grey", ls="", marker=marker, label=setting)
            for setting, marker in zip(settings, MARKERS, strict=False)
        ]
    return [*keys, Line2D([], [], color="grey", ls=":", label="not beaten in both")]


def _draw_front(panel: Axes, points: list[tuple[float, float]]) -> None:
    best: list[tuple[float, float]] = []
    for size, value in sorted(points):
        if not best or value > best[-1][1]:
            best.append((size, value))
    sizes, values = [size for size, _ in best], [value for _, value in best]
    panel.step(sizes, values, ":", where="post", color="grey")


def _draw_band(
    panel: Axes,
    places: list[float],
    values: list[list[float]],
    style: dict[str, Any],
    alpha: float,
) -> None:
    means = np.array([mean(chosen) for chosen in values])
    spread = np.array([stdev(chosen) if len(chosen) > 1 else 0.0 for chosen in values])
    every = max(1, len(places) // 8)
    panel.plot(places, means, markevery=every, **style)
    panel.fill_between(
        places, means - spread, means + spread, alpha=alpha, color=style["color"],
        linewidth=0,
    )  # fmt: skip


def _place(row: dict[str, float], against: str) -> float:
    if against in ("round", "hours"):
        return row[against]
    charged = ("uplink_bytes", "downlink_bytes", "catch_up_bytes")
    return _sum(row, charged) / 1e6


def _sum(row: Row, columns: Sequence[str]) -> float:
    return float(sum(row[column] for column in columns))


def _bars(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row["ours"] for row in rows], [row["sd"] or 0 for row in rows]
