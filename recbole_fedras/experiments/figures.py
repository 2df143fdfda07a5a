"""Figures of an exhibit: a panel for each dataset and metric, a colour per method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

Row = dict[str, Any]


class Curve(NamedTuple):
    """One run's evaluated rounds.

    Attributes
    ----------
    dataset, method : str
    rounds : list of dict
        ``round`` and ``valid_{metric}`` of each.
    """

    dataset: str
    method: str
    rounds: list[dict[str, float]]


def draw_settings(rows: Sequence[Row], xlabel: str | None) -> Figure:
    """Draw each metric against an exhibit's settings, with deviations over seeds."""
    metrics = _distinct(row["metric"] for row in rows)
    figure, panels = _panels(_distinct(row["dataset"] for row in rows), metrics, xlabel)
    for (dataset, metric), panel in panels:
        for method in _distinct(row["method"] for row in rows):
            own = [
                row
                for row in rows
                if (row["dataset"], row["metric"], row["method"])
                == (dataset, metric, method)
            ]
            values, deviations = _bars(own)
            panel.errorbar(
                [row["setting"] for row in own],
                values,
                deviations,
                marker="o",
                capsize=3,
                label=method,
            )
    return _with_legend(figure)


def draw_bytes(rows: Sequence[Row], xlabel: str | None) -> Figure:
    """Draw each metric against uplink and downlink; nothing on the line is beaten."""
    metrics = _distinct(row["metric"] for row in rows)
    datasets = _distinct(row["dataset"] for row in rows)
    figure, panels = _panels(datasets, metrics, xlabel, (6, 4))
    for (dataset, metric), panel in panels:
        points = [
            (row["uplink MB"] + row["downlink MB"], row)
            for row in rows
            if (row["dataset"], row["metric"]) == (dataset, metric)
            and isfinite(row["ours"])  # not all of its runs diverged
        ]
        for method in _distinct(row["method"] for row in rows):
            own = [(size, row) for size, row in points if row["method"] == method]
            values, deviations = _bars([row for _, row in own])
            panel.errorbar(
                [size for size, _ in own], values, deviations, fmt="o", capsize=3,
                label=method,
            )  # fmt: skip
            for size, row in own:
                at = (size, row["ours"])
                panel.annotate(
                    row["setting"], at, fontsize=6, textcoords="offset points",
                    xytext=(3, 3),
                )  # fmt: skip
        best: list[tuple[float, float]] = []
        for size, row in sorted(points, key=lambda point: point[0]):
            if not best or row["ours"] > best[-1][1]:
                best.append((size, row["ours"]))
        panel.step(
            [size for size, _ in best], [value for _, value in best], ":", where="post"
        )
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.xaxis.set_minor_formatter(NullFormatter())
    return _with_legend(figure)


def draw_metrics(rows: Sequence[Row], xlabel: str | None) -> Figure:
    """Draw metrics side by side, but for those that the paper prints a number of."""
    rows = [row for row in rows if row["paper"] is None]
    methods = _distinct(row["method"] for row in rows)
    figure, panels = _panels(_distinct(row["dataset"] for row in rows), [""], xlabel)
    for (dataset, _), panel in panels:
        for index, method in enumerate(methods):
            own = [
                row
                for row in rows
                if (row["dataset"], row["method"]) == (dataset, method)
            ]
            width = 0.8 / len(methods)
            places = np.arange(len(own)) + index * width
            values, deviations = _bars(own)
            panel.bar(places, values, width, yerr=deviations, capsize=3, label=method)
            names = [row["metric"] for row in own]
            panel.set_xticks(np.arange(len(own)), names, fontsize="x-small")
    return _with_legend(figure)


def draw_curves(
    curves: Sequence[Curve], metrics: Sequence[str], xlabel: str | None
) -> Figure:
    """Draw each validation metric against rounds, with deviations over seeds."""
    datasets = _distinct(curve.dataset for curve in curves)
    figure, panels = _panels(datasets, metrics, xlabel)
    for (dataset, metric), panel in panels:
        for method in _distinct(curve.method for curve in curves):
            values: dict[float, list[float]] = {}
            for curve in curves:
                if (curve.dataset, curve.method) == (dataset, method):
                    for row in curve.rounds:
                        values.setdefault(row["round"], []).append(
                            row[f"valid_{metric}"]
                        )
            means = np.array([mean(own) for own in values.values()])
            spread = np.array(
                [stdev(own) if len(own) > 1 else 0.0 for own in values.values()]
            )
            (line,) = panel.plot(list(values), means, label=method)
            panel.fill_between(
                list(values), means - spread, means + spread, alpha=0.15,
                color=line.get_color(), linewidth=0,
            )  # fmt: skip
        panel.set_ylabel(f"{metric}, validation")
    return _with_legend(figure)


def _panels(
    datasets: Sequence[str],
    metrics: Sequence[str],
    xlabel: str | None,
    inches: tuple[int, int] = (4, 3),
) -> tuple[Figure, Iterator[tuple[tuple[str, str], Axes]]]:
    size = (inches[0] * len(datasets) + 1.2, inches[1] * len(metrics))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(datasets), squeeze=False)
    named = {}
    for i, metric in enumerate(metrics):
        for j, dataset in enumerate(datasets):
            panels[i, j].set(title=dataset, xlabel=xlabel, ylabel=metric)
            named[dataset, metric] = panels[i, j]
    return figure, iter(named.items())


def _with_legend(figure: Figure) -> Figure:
    """Put one legend beside all panels, where it hides nothing."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    return figure


def _bars(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [row["ours"] for row in rows], [row["sd"] or 0 for row in rows]


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
