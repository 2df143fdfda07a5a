"""Runs of exhibits, written as tables and figures beside the paper's numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from math import inf, nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

from recbole_fedras.config import Config
from recbole_fedras.experiments.exhibits import Entry, Exhibit
from recbole_fedras.experiments.figures import (
    Curve,
    draw_bytes,
    draw_curves,
    draw_metrics,
    draw_settings,
)
from recbole_fedras.experiments.sweep import Keys, Outcome, file_of, run_cells


def reproduce(
    exhibit: Exhibit,
    seeds: Sequence[int],
    local: Keys,
    n_jobs: int,
    output: str | Path,
    dry_run: bool = False,
) -> list[dict[str, Any]]:
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
    n_jobs : int
        Runs at a time; -1 for one per core.
    output : str or Path
        Folder for ``cells/``, which all exhibits share, and ``{exhibit}.md``, ``.csv``
        and ``.tex``; of a figure ``.png`` and ``.svg`` too.
    dry_run : bool
        Only say how many runs there are and how many of them are finished.

    Returns
    -------
    list of dict
        A row for each entry and metric; empty for a dry run.
    """
    folder = Path(output)
    n_jobs = exhibit.jobs or n_jobs
    measure = exhibit.measure
    tuned = {
        entry.tuned: entry
        for entry in exhibit.entries
        if "learning_rate" not in entry.keys and len(entry.learning_rates) > 1
    }
    grid = [
        entry.tuning | local | {"learning_rate": rate, "seed": seeds[0]}
        for entry in tuned.values()
        for rate in entry.learning_rates
    ]
    for cell in [*grid, *(entry.keys | local for entry in exhibit.entries)]:
        Config(config_dict=cell)
    store = folder / "cells"
    chosen = {
        entry.tuned: entry.keys.get("learning_rate", entry.learning_rates[0])
        for entry in exhibit.entries
    }

    def cells() -> list[Keys]:
        return [
            entry.keys | local | {"learning_rate": chosen[entry.tuned], "seed": seed}
            for entry in exhibit.entries
            for seed in seeds
        ]

    if dry_run:
        due = grid or cells()
        done = sum(file_of(cell, store, measure).is_file() for cell in due)
        said = [f"{len(due)} runs{' for learning rates' * bool(grid)}"]
        said += [f"{done} of them finished"]
        if grid:
            shared = sum(entry.keys == entry.tuning for entry in exhibit.entries)
            said += [f"then {len(cells()) - shared} with those chosen"]
        print(f"{exhibit.title}: {', '.join(said)}")
        return []
    if grid:
        title = f"{exhibit.name}: learning rates"
        tried = iter(run_cells(grid, store, n_jobs, title, measure))
        for key, entry in tuned.items():
            rates = entry.learning_rates
            chosen[key] = _best_rate(rates, list(islice(tried, len(rates))))
    outcomes = run_cells(cells(), store, n_jobs, exhibit.name, measure)
    rows = []
    curves: list[Curve] = []
    for index, entry in enumerate(exhibit.entries):
        own = outcomes[index * len(seeds) : (index + 1) * len(seeds)]
        rows += list(_rows(exhibit, entry, own, chosen[entry.tuned]))
        curves += [
            Curve(entry.dataset, entry.method, outcome.get("curve", []))
            for outcome in own
        ]
    _write(folder, exhibit, rows, seeds)
    if exhibit.figure is not None:
        _draw(folder, exhibit, rows, curves)
    return rows


def _best_rate(rates: list[float], tried: list[Outcome]) -> float:
    """Return the rate with the best validation score."""
    scores = [
        outcome["result"]["best_valid_score"] if outcome["result"] else -inf
        for outcome in tried
    ]
    return rates[scores.index(max(scores))]


def _rows(
    exhibit: Exhibit, entry: Entry, outcomes: list[Outcome], learning_rate: float
) -> Iterator[dict[str, Any]]:
    results = [outcome["result"] for outcome in outcomes if outcome["result"]]
    cost = [result["communication"] for result in results]

    def megabytes(key: str) -> float:
        return float(mean([run[key] for run in cost] or [nan])) / 1e6

    for index, metric in enumerate(exhibit.metrics):
        values = [result["test_result"][metric] for result in results]
        ours = mean(values or [nan])
        paper = None if entry.paper is None else entry.paper[index]
        yield {
            "dataset": entry.dataset,
            "model": entry.model,
            "method": entry.method,
            "setting": entry.setting,
            "metric": metric,
            "ours": ours,
            "sd": stdev(values) if len(values) > 1 else None,
            "paper": paper,
            "difference": None if paper is None else ours - paper,
            "CR wire": mean([run["wire_compression_rate"] for run in cost] or [nan]),
            "uplink MB": megabytes("uplink_bytes"),
            "downlink MB": megabytes("downlink_bytes"),
            "catch-up MB": megabytes("catch_up_bytes"),
            "learning rate": learning_rate,
            "diverged": len(outcomes) - len(results),
        }


def _draw(
    folder: Path, exhibit: Exhibit, rows: list[dict[str, Any]], curves: list[Curve]
) -> None:
    if exhibit.drawn == "rounds":
        figure = draw_curves(curves, exhibit.metrics, exhibit.figure)
    elif exhibit.drawn == "bytes":
        figure = draw_bytes(rows, exhibit.figure)
    elif exhibit.drawn == "metrics":
        figure = draw_metrics(rows, exhibit.figure)
    else:
        figure = draw_settings(rows, exhibit.figure)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"{exhibit.name}.{suffix}")
    print(f"{exhibit.name}.png and .svg are in {folder}")


_FORMATS = {
    "ours": ".4f", "sd": ".4f", "paper": ".4f", "difference": ".4f",
    "CR wire": ".2%", "uplink MB": ",.1f", "downlink MB": ",.1f",
    "catch-up MB": ",.1f", "learning rate": "g",
}  # fmt: skip


def _shown(key: str, value: Any) -> str:
    style = _FORMATS.get(key, "")
    if style == ".4f" and 0 < abs(value) < 1e-3:
        style = ".2e"
    return format(value, f"+{style}" if key == "difference" else style)


def _write(
    folder: Path, exhibit: Exhibit, rows: list[dict[str, Any]], seeds: Sequence[int]
) -> None:
    with (folder / f"{exhibit.name}.csv").open(
        "w", newline="", encoding="utf-8"
    ) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    shown = [
        {key: "" if value is None else _shown(key, value) for key, value in row.items()}
        for row in rows
    ]
    markdown, latex = (
        tabulate(shown, headers="keys", tablefmt=style, disable_numparse=True)
        for style in ("github", "latex_booktabs")
    )
    title = f"{exhibit.title}. Seeds {', '.join(map(str, seeds))}."
    (folder / f"{exhibit.name}.md").write_text(f"{title}\n\n{markdown}\n", "utf-8")
    (folder / f"{exhibit.name}.tex").write_text(f"% {title}\n{latex}\n", "utf-8")
    print(title)
    print(markdown)
    print(f"{exhibit.name}.md, .csv and .tex are in {folder}")
