"""What all figures have in common: panels, methods' styles, a legend beside them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

Row = Mapping[str, Any]

#: Of these no two are alike in black and white.
MARKERS = "osD^v<>pP*Xhd8H"

#: As many, each about as far from the next one (Oklab) as are matplotlib's ten.
COLOURS = (
    "#1f77b4", "#f28e00", "#2ca02c", "#d62728", "#7b3fbf", "#6b3d14", "#ff2da5",
    "#8c8c8c", "#a3a300", "#12b5cb", "#00226b", "#0b5d1e", "#c9a0f0", "#ff9a8a",
    "#000000",
)  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write a figure, as what its name ends in: ``.png``, ``.svg``, ``.pdf``."""
    figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)


def svg(figure: Figure) -> str:
    """Return a figure to be put into a page, its words as text."""
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file := io.StringIO(), format="svg")
    return file.getvalue().partition("<svg")[1] + file.getvalue().partition("<svg")[2]


def panels_of(
    rows: Sequence[Row], xlabel: str | None, inches: tuple[int, int] = (4, 3)
) -> tuple[Figure, Iterator[tuple[Axes, list[Row]]]]:
    """Make a panel for each dataset and metric; give each its rows."""
    datasets = distinct(row["dataset"] for row in rows)
    metrics = distinct(row["metric"] for row in rows)
    figure, every = panels(datasets, metrics, xlabel, inches)
    shown = (
        (panel, [row for row in rows if (row["dataset"], row["metric"]) == names])
        for names, panel in every
    )
    return figure, shown


def panels(
    datasets: Sequence[str],
    metrics: Sequence[str],
    xlabel: str | None,
    inches: tuple[int, int] = (4, 3),
) -> tuple[Figure, Iterator[tuple[tuple[str, str], Axes]]]:
    """Make a panel for each dataset, side by side, and metric, one below another."""
    size = (inches[0] * len(datasets) + 1.8, inches[1] * len(metrics))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(metrics), len(datasets), squeeze=False)
    named = {}
    for i, metric in enumerate(metrics):
        for j, dataset in enumerate(datasets):
            grid[i, j].set(title=dataset, xlabel=xlabel, ylabel=metric)
            named[dataset, metric] = grid[i, j]
    return figure, iter(named.items())


def style_of(index: int) -> dict[str, Any]:
    """Colour, marker and line of a method, the same in all panels."""
    again, place = divmod(index, len(COLOURS))
    line = ("-", "--", ":")[again % 3]
    return {"color": COLOURS[place], "marker": MARKERS[place], "ms": 5, "ls": line}


def styles(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each method its style."""
    for index, method in enumerate(distinct(row["method"] for row in rows)):
        yield method, style_of(index)


def scale_by_decades(panel: Axes) -> None:
    """Make the x-axis logarithmic, with numbers that are read at a glance."""
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    few = high < 200 * low  # else numbers would overlap
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    panel.xaxis.set_major_formatter("{x:,g}")
    panel.xaxis.set_minor_formatter(NullFormatter())


def with_legend(figure: Figure, handles: list[Any] | None = None) -> Figure:
    """Put one legend beside all panels, where it hides nothing."""
    handles = handles or figure.axes[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside right upper", fontsize="small")
    return figure


def distinct(values: Iterable[str]) -> list[str]:
    """Return values once each, in order."""
    return list(dict.fromkeys(values))
