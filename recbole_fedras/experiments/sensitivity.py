"""How much depends on learning rate and weight decay: heat maps, and regret."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from recbole_fedras.experiments.entries import Entry
from recbole_fedras.experiments.identity import Outcome
from recbole_fedras.experiments.panels import distinct, panels
from recbole_fedras.experiments.tables import Row

#: Pairs whose validation is within this share of the best are as good as that.
_LEVEL = 0.02


class Cell(NamedTuple):
    """What a method reaches with a pair; NaN where a run diverged.

    Attributes
    ----------
    dataset, method : str
    pair : tuple of float
        Learning rate and weight decay.
    valid, test : float
        Means over seeds: of the best validation score, and of the metric in the test.
    """

    dataset: str
    method: str
    pair: tuple[float, float]
    valid: float
    test: float


def cells_of(
    by_entry: Sequence[tuple[Entry, list[Outcome]]], metric: str
) -> list[Cell]:
    """Return what each entry reaches."""
    return [
        Cell(
            entry.dataset,
            entry.method,
            (entry.keys["learning_rate"], entry.keys["weight_decay"]),
            _mean(
                [run["result"] and run["result"]["best_valid_score"] for run in runs]
            ),
            _mean(
                [run["result"] and run["result"]["test_result"][metric] for run in runs]
            ),
        )
        for entry, runs in by_entry
    ]


def draw_heat(cells: Sequence[Cell], metric: str) -> Figure:
    """Draw a map for each method and dataset, brighter where the test is better."""
    datasets, methods = (
        distinct(names) for names in list(zip(*cells, strict=True))[:2]
    )
    figure, every = panels(datasets, methods, "learning rate", (4, 3))
    known = [cell.test for cell in cells if not np.isnan(cell.test)]
    for (dataset, method), panel in every:
        shown = [
            cell for cell in cells if (cell.dataset, cell.method) == (dataset, method)
        ]
        rates, decays = (
            sorted(set(part)) for part in zip(*(c.pair for c in shown), strict=True)
        )
        values = {cell.pair: cell.test for cell in shown}
        grid = [[values.get((rate, decay), nan) for rate in rates] for decay in decays]
        panel.imshow(
            grid, vmin=min(known), vmax=max(known), aspect="auto", origin="lower"
        )
        for (y, x), value in np.ndenumerate(np.array(grid)):
            dark = value < (min(known) + max(known)) / 2
            style: dict[str, Any] = {"color": "w" if dark else "k", "fontsize": "small"}
            panel.text(x, y, f"{value:.3f}", ha="center", va="center", **style)
        panel.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        panel.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        panel.set(title=f"{dataset}: {method}", ylabel=f"weight decay ({metric})")
    return figure


def regrets(cells: Sequence[Cell]) -> list[Row]:
    """Return what each method loses by the pair that is best without compression.

    Pairs are chosen by validation, what is lost is of the test. The first method is the
    one without compression.

    Returns
    -------
    list of dict
        ``best``, the test with the method's own pair; ``with first's pair``;
        ``regret``, their difference; ``worst within 2 %``, the test at the worst of the
        pairs whose validation is so near the best; ``level with``, the methods that
        another choice of such pairs would put before this one, or behind.
    """
    rows: list[Row] = []
    for dataset in distinct(cell.dataset for cell in cells):
        here = [cell for cell in cells if cell.dataset == dataset]
        methods = distinct(cell.method for cell in here)
        of = {name: [cell for cell in here if cell.method == name] for name in methods}
        first = _best(of[methods[0]]).pair
        near = {name: _near(group) for name, group in of.items()}
        for name, group in of.items():
            best, there = _best(group), _at(group, first)
            low, high = near[name]
            rows.append(
                {
                    "dataset": dataset,
                    "method": name,
                    "learning rate": best.pair[0],
                    "weight decay": best.pair[1],
                    "best": best.test,
                    "with first's pair": there,
                    "regret": best.test - there,
                    "worst within 2 %": low,
                    "level with": ", ".join(
                        other
                        for other, (lowest, highest) in near.items()
                        if other != name and lowest <= high and low <= highest
                    ),
                }
            )
    return rows


def _best(group: Sequence[Cell]) -> Cell:
    return max(group, key=lambda cell: -1.0 if np.isnan(cell.valid) else cell.valid)


def _at(group: Sequence[Cell], pair: tuple[float, float]) -> float:
    return next(cell.test for cell in group if cell.pair == pair)


def _near(group: Sequence[Cell]) -> tuple[float, float]:
    """Return the least and the largest test among the pairs that are as good."""
    bound = (1 - _LEVEL) * _best(group).valid
    tests = [cell.test for cell in group if cell.valid >= bound]
    return min(tests, default=nan), max(tests, default=nan)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else nan
