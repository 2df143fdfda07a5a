"""Figures of a comparison's report; a method has the same colour in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from recbole_fedras.experiments.figures import Curve, draw_bytes, draw_curves
from recbole_fedras.experiments.identity import Outcome
from recbole_fedras.experiments.panels import COLOURS
from recbole_fedras.experiments.tables import SPREAD
from recbole_fedras.wire.ledger import DIRECTIONS

Runs = dict[str, list[Outcome]]
Row = dict[str, Any]

_CHARGED = ("uplink MB", "downlink MB", "catch-up MB")


def draw_quality(rows: Sequence[Row], metric: str) -> Figure:
    """Draw a metric against all that is charged."""
    points = [
        row
        | {"dataset": "", "metric": metric, "setting": ""}
        | {"ours": row[metric], "sd": row[metric + SPREAD]}
        for row in rows
    ]
    return _with_legend_below(draw_bytes(points, "MB, everything charged", _CHARGED))


def draw_curves_against(runs: Runs, metric: str) -> Iterator[Figure]:
    """Draw a metric on validation against rounds, megabytes and, if any, hours."""
    curves = [
        Curve("", label, run["curve"]) for label, group in runs.items() for run in group
    ]
    rounds = [row for curve in curves for row in curve.rounds]
    if not rounds:
        return
    drawn = {"round": "round", "megabytes": "MB, everything charged"}
    if all("hours" in row for row in rounds):
        drawn["hours"] = "hours in the described world"
    for against, xlabel in drawn.items():
        yield _with_legend_below(draw_curves(curves, [metric], xlabel, against))


def _with_legend_below(figure: Figure) -> Figure:
    """Put the legend below the panel, so that a narrow window has both."""
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    handles = [handle for handle in legend.legend_handles if handle is not None]
    legend.remove()
    figure.set_size_inches(5, 3.3 + 0.2 * (1 + len(labels) // 2))
    figure.legend(handles, labels, loc="outside lower center", ncols=2,
                  fontsize="small")  # fmt: skip
    return figure


def draw_changes(rows: Sequence[Row]) -> Figure:
    """Draw how many users fare better and worse than with the first method."""
    figure, panel = _lying_bars(len(rows) - 1)
    names = [fill(row["method"], 24) for row in rows[1:]]
    for sign, column, colour in (
        (-1, "worse users", COLOURS[3]), (1, "better users", COLOURS[0])
    ):  # fmt: skip
        counts = [sign * row[column] for row in rows[1:]]
        panel.barh(names, counts, color=colour, label=column)
    panel.axvline(0, color="black", lw=0.8)
    panel.invert_yaxis()
    panel.xaxis.set_major_formatter(lambda count, _: f"{abs(count):,.0f}")
    panel.set_xlabel(f"users, against {rows[0]['method']}")
    figure.legend(loc="outside upper center", ncols=2, fontsize="small")
    return figure


def draw_fairness(runs: Runs) -> Figure | None:
    """Draw hits by activity, a row for each method; None where nobody knows them."""
    groups = {
        label: [run["result"].get("groups", {}).get("activity") for run in group]
        for label, group in runs.items()
    }
    if not all(all(of_method) for of_method in groups.values()):
        return None
    some = next(iter(groups.values()))[0]
    metric = next(iter(some))
    shares = np.array(
        [np.mean([one[metric] for one in of], axis=0) for of in groups.values()]
    )
    figure, panel = _lying_bars(len(shares))
    picture = panel.imshow(shares, cmap="viridis", aspect="auto")
    middle = (shares.min() + shares.max()) / 2
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share < middle else "black"
        panel.text(column, row, f"{share:.2f}", color=colour, fontsize="x-small",
                   ha="center", va="center")  # fmt: skip
    panel.set_yticks(range(len(shares)), [fill(label, 24) for label in groups])
    panel.set_xticks(range(len(some["upto"])), [f"{upto:,g}" for upto in some["upto"]])
    panel.set_xlabel("interactions in training, up to")
    figure.colorbar(picture, label=metric)
    return figure


def draw_parts(runs: Runs) -> Figure:
    """Draw what the bytes charged are, as shares of each method's; its sum beside."""
    figure, panel = _lying_bars(len(runs))
    charged = {label: _parts_of(group) for label, group in runs.items()}
    sums = {label: sum(parts.values()) for label, parts in charged.items()}
    names = [fill(f"{label}: {sums[label] / 1e6:,.1f} MB", 34) for label in runs]
    left = np.zeros(len(runs))
    used = [part for part in next(iter(charged.values()))
            if any(parts[part] for parts in charged.values())]  # fmt: skip
    for part in used:
        shares = [parts[part] / sums[label] for label, parts in charged.items()]
        hatch = "//" if part.startswith("down") else None
        panel.barh(names, shares, left=left, label=part, color=_colour(part),
                   hatch=hatch, edgecolor="white", linewidth=0)  # fmt: skip
        left += shares
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter("{x:.0%}")
    panel.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _parts_of(runs: Sequence[Outcome]) -> dict[str, float]:
    """Return bytes by direction and part, and those caught up on, means over seeds."""
    every = [run["result"]["communication"] for run in runs]
    parts = {
        f"{direction.removesuffix('link')} {part}": mean(
            one["parts"][direction][part] for one in every
        )
        for direction in DIRECTIONS
        for part in every[0]["parts"][direction]
    }
    return parts | {"catch-up": mean(one["catch_up_bytes"] for one in every)}


def _colour(part: str) -> str:
    kinds = ("items", "ids", "theta", "once", "framing", "catch-up")
    return COLOURS[kinds.index(part.rpartition(" ")[2])]


def _lying_bars(n_rows: int) -> tuple[Figure, Any]:
    """Make a panel with room for so many rows."""
    figure = Figure(figsize=(7.8, 1.6 + 0.38 * n_rows), layout="constrained")
    panel = figure.subplots()
    panel.margins(y=0.01)
    return figure, panel
