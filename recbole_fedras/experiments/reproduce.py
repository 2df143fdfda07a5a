"""Runs of exhibits, written as tables and figures beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isnan, nan
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from recbole_fedras.experiments import figures
from recbole_fedras.experiments.clients import train_and_test_clients
from recbole_fedras.experiments.entries import Entry
from recbole_fedras.experiments.exhibits import Exhibit
from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.experiments.network import train_network
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.panels import save
from recbole_fedras.experiments.privacy_figure import draw_privacy
from recbole_fedras.experiments.provenance import note_of_other_code, other_code
from recbole_fedras.experiments.rank_plot import draw_order
from recbole_fedras.experiments.sensitivity import cells_of, draw_heat, regrets
from recbole_fedras.experiments.statistics import (
    UNKNOWN,
    adjusted,
    difference,
    interval,
    order,
)
from recbole_fedras.experiments.summary import ahead, cost, measured
from recbole_fedras.experiments.sweep import Sweep
from recbole_fedras.experiments.tables import HIGH, LOW, Table
from recbole_fedras.experiments.tuning import best_rate
from recbole_fedras.run.stages import tell

Row = dict[str, Any]

#: Measures whose first metric is the better the larger, so that methods can be ranked.
_MORE_IS_BETTER = (train_and_test, train_and_test_clients, train_network)


def reproduce(
    exhibit: Exhibit,
    seeds: Sequence[int],
    local: Keys,
    sweep: Sweep,
    dry_run: bool = False,
    style: str = "markdown",
) -> list[Row]:
    """Run an exhibit and write it as Markdown, CSV and LaTeX; draw a figure.

    The learning rate of a method, with a model on a dataset, is the one of the grid
    with the best validation score in the exhibit's ``tuning`` setting and with the
    first seed. All methods share split, candidates, cohorts and negatives, which
    depend on the seed alone.

    Parameters
    ----------
    exhibit : Exhibit
    seeds : sequence of int
    local : dict
        Keys of this machine, as ``data_path``.
    sweep : Sweep
        Whose folder is for the exhibit's runs, ``table.md``, ``.csv`` and ``.tex``; of
        a figure ``figure.png`` too.
    dry_run : bool
        Only say how many runs there are and how many of them are finished.
    style : {'markdown', 'latex', 'csv'}
        Of the table that is printed.

    Returns
    -------
    list of dict
        A row for each entry and metric; empty for a dry run.
    """
    plan = _Plan(exhibit, seeds, local)
    found = [sweep.find(cell, exhibit.measure) for cell in [*plan.grid, *plan.cells()]]
    if dry_run:
        print(f"{exhibit.title}: {plan.counts(found)}")
        return []
    if plan.grid:
        title = f"{exhibit.name}: learning rates"
        plan.choose(sweep.run(plan.grid, title, exhibit.measure))
    outcomes = sweep.run(plan.cells(), exhibit.name, exhibit.measure)
    by_entry = list(plan.by_entry(outcomes))
    firsts = _firsts(by_entry)
    rows = [
        row
        for (entry, runs), first, tested in zip(
            by_entry, firsts, _tests(by_entry, firsts), strict=True
        )
        for row in _rows(
            exhibit,
            entry,
            runs,
            first,
            {"learning rate": plan.rates[entry.tuned]} | tested,
        )
    ]
    title = f"{exhibit.title}. Seeds {', '.join(map(str, seeds))}."
    note = note_of_other_code(outcomes, exhibit.measure)
    Table(title, rows, note).write(sweep.folder, style)
    if exhibit.figure is not None:
        save(_drawn(exhibit, rows, by_entry), sweep.folder / "figure.png")
    if exhibit.drawn == "heat":
        lost = regrets(cells_of(by_entry, exhibit.metrics[0]))
        Table(f"{title} {exhibit.metrics[0]}", lost).write(sweep.folder / "regret")
    ranked = order(_scores(rows)) if exhibit.measure in _MORE_IS_BETTER else None
    if ranked is not None:
        save(draw_order(ranked), sweep.folder / "ranks.png")
    tell(f"tables{' and figure.png' * bool(exhibit.figure)} are in {sweep.folder}")
    return rows


@dataclass
class _Plan:
    """Which runs an exhibit takes: of a grid of learning rates, then of those chosen.

    Attributes
    ----------
    grid : list of dict
        Configurations that learning rates are chosen from.
    rates : dict
        The learning rate of all entries that share one; the grid's first before it is
        chosen.
    """

    exhibit: Exhibit
    seeds: Sequence[int]
    local: Keys

    def __post_init__(self) -> None:
        entries = self.exhibit.entries
        self._tuned = {
            entry.tuned: entry
            for entry in entries
            if "learning_rate" not in entry.keys and len(entry.learning_rates) > 1
        }
        self.rates = {
            entry.tuned: entry.keys.get("learning_rate", entry.learning_rates[0])
            for entry in entries
        }
        self.grid = [
            entry.tuning | self.local | {"learning_rate": rate, "seed": self.seeds[0]}
            for entry in self._tuned.values()
            for rate in entry.learning_rates
        ]

    def cells(self) -> list[Keys]:
        """Return the configurations of all entries, with every seed."""
        return [
            entry.keys
            | self.local
            | {"learning_rate": self.rates[entry.tuned], "seed": seed}
            for entry in self.exhibit.entries
            for seed in self.seeds
        ]

    def choose(self, tried: list[Outcome]) -> None:
        """Take the best learning rates, by the outcomes of the grid."""
        outcomes = iter(tried)
        for key, entry in self._tuned.items():
            rates = entry.learning_rates
            self.rates[key] = best_rate(rates, list(islice(outcomes, len(rates))))

    def by_entry(
        self, outcomes: Sequence[Outcome]
    ) -> Iterator[tuple[Entry, list[Outcome]]]:
        """Give each entry the outcomes of its seeds."""
        runs = iter(outcomes)
        for entry in self.exhibit.entries:
            yield entry, list(islice(runs, len(self.seeds)))

    def counts(self, found: list[Outcome | None]) -> str:
        """Say how many runs there are, of the grid first if there is one."""
        due = found[: len(self.grid)] or found
        done = sum(run is not None for run in due)
        parts = [f"{len(due)} runs{' for learning rates' * bool(self.grid)}"]
        parts += [f"{done} of them finished"]
        if self.grid:
            entries = self.exhibit.entries
            shared = sum(entry.keys == entry.tuning for entry in entries)
            n_cells = len(entries) * len(self.seeds)
            parts += [f"then {n_cells - shared} with those chosen"]
        return ", ".join(parts)


def _rows(
    exhibit: Exhibit,
    entry: Entry,
    runs: list[Outcome],
    first: list[Outcome],
    told: Row,
) -> Iterator[Row]:
    """Yield a row for each metric of an entry that its runs have.

    Parameters
    ----------
    exhibit : Exhibit
    entry : Entry
    runs, first : list of dict
        Its outcomes, and those of the first method of its dataset, model and setting.
    told : dict
        Columns that all of them have.
    """
    trained = [run for run in runs if run["result"]]
    results = [run["result"] for run in trained]
    labels = {
        key: getattr(entry, key) for key in ("dataset", "model", "method", "setting")
    }
    rest: Row = {
        **cost([result["communication"] for result in results]),
        **told,
        "diverged": len(runs) - len(results),
        "other code": other_code(runs, exhibit.measure),
    }
    found = [measured(run) | run["result"].get("privacy", {}) for run in trained]
    for index, metric in enumerate(exhibit.metrics):
        values = [one[metric] for one in found if one.get(metric) is not None]
        if found and not values:  # no target to expose, or no noise to bound anything
            continue
        paper = None if entry.paper is None else entry.paper[index]
        low, high = interval(metric, runs) or (None, None)
        ends = {"ours" + LOW: low, "ours" + HIGH: high}
        quality = _quality(values, paper) | ends
        quality |= ahead(metric, runs, first, "ours - first")
        yield labels | {"metric": metric} | quality | rest


def _firsts(by_entry: list[tuple[Entry, list[Outcome]]]) -> list[list[Outcome]]:
    """Return for each entry the first method of its dataset, model and setting."""
    firsts: dict[tuple[str, str, str], list[Outcome]] = {}
    return [
        firsts.setdefault((entry.dataset, entry.model, entry.setting), runs)
        for entry, runs in by_entry
    ]


def _tests(
    by_entry: list[tuple[Entry, list[Outcome]]], firsts: list[list[Outcome]]
) -> list[Row]:
    """Test each entry against the first method."""
    found = [
        UNKNOWN if runs is first else difference(runs, first)
        for (_, runs), first in zip(by_entry, firsts, strict=True)
    ]
    corrected = adjusted([one.p for one in found])
    return [
        {
            key: "" if isnan(value) else value
            for key, value in (
                ("effect", one.effect),
                ("p", one.p),
                ("p adjusted", p_value),
            )
        }
        for one, p_value in zip(found, corrected, strict=True)
    ]


def _scores(rows: list[Row]) -> dict[str, list[float]]:
    """Return what each method scores, by the first metric, in every cell."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"] == rows[0]["metric"]:
            scores.setdefault(row["method"], []).append(row["ours"])
    return scores


def _quality(values: list[float], paper: float | None) -> Row:
    ours = mean(values or [nan])
    return {
        "ours": ours,
        "sd": stdev(values) if len(values) > 1 else None,
        "paper": None if paper is None else float(paper),
        "difference": None if paper is None else ours - paper,
    }


def _drawn(
    exhibit: Exhibit, rows: list[Row], by_entry: list[tuple[Entry, list[Outcome]]]
) -> Figure:
    if exhibit.drawn in ("rounds", "hours"):
        curves = [
            figures.Curve(entry.dataset, entry.method, run.get("curve", []))
            for entry, runs in by_entry
            for run in runs
        ]
        against = "round" if exhibit.drawn == "rounds" else "hours"
        known = {key for curve in curves for row in curve.rounds for key in row}
        metrics = [name for name in exhibit.metrics if f"valid_{name}" in known]
        return figures.draw_curves(curves, metrics, exhibit.figure, against)
    if exhibit.drawn == "heat":
        return draw_heat(cells_of(by_entry, exhibit.metrics[0]), exhibit.metrics[0])
    draw: dict[str, Callable[[list[Row], str | None], Figure]] = {
        "bars": figures.draw_bars,
        "bytes": figures.draw_bytes,
        "metrics": figures.draw_metrics,
        "models": partial(figures.draw_bars, label="model"),
        "privacy": draw_privacy,
        "settings": figures.draw_settings,
    }
    return draw[exhibit.drawn](rows, exhibit.figure)
