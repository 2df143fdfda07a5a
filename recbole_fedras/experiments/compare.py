"""Compares compressors on a dataset: a table, and one page with the plots."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from html import escape
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import plotly.graph_objects as go
from scipy.stats import wilcoxon
from tabulate import tabulate

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import Config, registry
from recbole_fedras.errors import ConfigError, NonFiniteError
from recbole_fedras.experiments.sweep import (
    RELABELLING,
    Keys,
    file_of,
    run_cells,
    train_and_test,
)
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.quick_start import make_simulation, prepare_data
from recbole_fedras.run.trainer import check_after_warmup

Cell = dict[str, Any]
_MB = 1e6

#: Keys that declare a compressor of the user's own, which ``compressors`` may name.
_DECLARING = {"compressor", "compressor_class"}


def compare(
    compressors: Sequence[str],
    rates: Sequence[float],
    keys: Keys,
    seeds: Sequence[int],
    n_jobs: int,
    output: str | Path,
) -> list[dict[str, Any]]:
    """Run every compressor at every rate with every seed; write and print the table.

    Parameters
    ----------
    compressors : sequence of str
        The first is what the others are tested against; ``none`` runs at one rate.
    rates : sequence of float
    keys : dict
        Keys that all runs have in common. ``compressor`` and ``compressor_class``
        together declare a compressor of one's own that ``compressors`` may name.
    seeds : sequence of int
    n_jobs : int
        Runs at a time; -1 for one per core.
    output : str or Path
        Folder for ``cells/``, ``table.csv``, ``table.md`` and ``report.html``.

    Returns
    -------
    list of dict
        The table's rows.

    Raises
    ------
    ConfigError
        For a configuration that cannot work, before any run.
    NonFiniteError
        If a run diverged; the others are kept.
    """
    declared = _declared(keys)
    keys = {key: value for key, value in keys.items() if key not in _DECLARING}
    methods = [
        (name, rate)
        for name in dict.fromkeys(compressors)
        for rate in (sorted(set(rates))[:1] if name == "none" else sorted(set(rates)))
    ]
    own = {key for added in declared.values() for key in added}
    shared = {key: value for key, value in keys.items() if key not in own}
    cells = {
        (method, seed): shared
        | {"compressor": method[0], "compression_rate": method[1], "seed": seed}
        | declared.get(method[0], {})
        for method in methods
        for seed in dict.fromkeys(seeds)
    }
    folder = Path(output)
    _check(list(cells.values()), folder / "cells")
    outcomes = run_cells(list(cells.values()), folder / "cells", n_jobs, "Compare")
    for outcome in outcomes:
        if outcome["result"] is None:
            raise NonFiniteError(f"{outcome['keys']}: {outcome['error']}")
    runs: dict[str, list[Cell]] = {}
    for ((name, rate), _), outcome in zip(cells, outcomes, strict=True):
        label = name if name == "none" else f"{name} {100 * rate:g} %"
        runs.setdefault(label, []).append(outcome)
    rows = [
        summary(label, own, next(iter(runs.values()))) for label, own in runs.items()
    ]
    _write(folder, rows, runs, f"{outcomes[0]['result']['dataset']}, seeds {seeds}")
    print(markdown(rows))
    print(f"Tables and report.html are in {folder}")
    return rows


def _check(cells: list[Keys], folder: Path) -> None:
    """Refuse what could not run: keys of all, budgets of those that have not run."""
    configs = [Config(config_dict=cell) for cell in cells]
    missing = [
        config
        for config, cell in zip(configs, cells, strict=True)
        if not file_of(cell, folder, train_and_test).is_file()
        and cell["seed"] == cells[0]["seed"]
    ]
    if missing:
        train_data, _, _ = prepare_data(missing[0])
        for config in missing:
            check_after_warmup(config, make_simulation(config, train_data, Simulation))


def _declared(keys: Keys) -> dict[str, Keys]:
    """Return class and hyper-parameters of a compressor of the user's own, by its name.

    Raises
    ------
    ConfigError
        If a key is given that is what the runs differ in.
    """
    refused = sorted((RELABELLING | {"compression_rate", "seed"}) & keys.keys())
    if "compressor" in keys and "compressor_class" not in keys:
        refused.append("compressor")
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} must not be set: that is what is compared, by "
            "--compressors, --compression_rates and --seeds"
        )
    if "compressor_class" not in keys:
        return {}
    found = registry.load_class(
        "compressor_class", keys["compressor_class"], Compressor
    )
    own = {"compressor_class", *registry.hyper_parameters(found)} & keys.keys()
    return {keys["compressor"]: {key: keys[key] for key in own}}


def summary(label: str, own: list[Cell], first: list[Cell]) -> dict[str, Any]:
    """Return one row: quality, its significance against ``first``, and cost."""
    row: dict[str, Any] = {"method": label}
    for metric in own[0]["result"]["test_result"]:
        values = [cell["result"]["test_result"][metric] for cell in own]
        row[metric] = mean(values)
        row[f"{metric} sd"] = stdev(values) if len(values) > 1 else None
    row["better users"], row["worse users"], row["p"] = significance(own, first)
    cost = [cell["result"]["communication"] for cell in own]
    for direction in ("uplink", "downlink", "catch_up"):
        size = mean(run[f"{direction}_bytes"] for run in cost)
        row[f"{direction.replace('_', '-')} MB"] = size / _MB
    row["CR wire"] = mean(run["wire_compression_rate"] for run in cost)
    row["seconds"] = mean(cell["result"]["seconds"]["total"] for cell in own)
    return row


def significance(own: list[Cell], first: list[Cell]) -> tuple[int, int, float]:
    """Test by Wilcoxon's signed ranks whether users fare otherwise than with ``first``.

    What is paired is a user's reciprocal rank in the test, the mean over seeds.

    Returns
    -------
    better, worse : int
        Users whose item stands higher, or lower, than with ``first``.
    p : float
        Two-sided; 1 where no user differs. NaN where no metric counts hits, and where
        a split that depends on the seed tests other users with each.
    """
    sizes = {len(cell["ranks"]) for cell in [*own, *first]}
    if sizes == {0} or len(sizes) > 1:
        return 0, 0, nan
    change = _reciprocal_ranks(own) - _reciprocal_ranks(first)
    better, worse = int((change > 1e-12).sum()), int((change < -1e-12).sum())
    p = float(wilcoxon(change).pvalue) if better + worse else 1.0
    return better, worse, p


def _reciprocal_ranks(cells: list[Cell]) -> np.ndarray[Any, np.dtype[np.float64]]:
    ranks = np.array([cell["ranks"] for cell in cells], float)  # (n_seeds, n_users)
    reciprocal = np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0)
    return np.asarray(reciprocal.mean(axis=0))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Render the table."""
    shown = []
    for row in rows:
        line: dict[str, str] = {}
        for key, value in row.items():
            if key.endswith(" sd"):
                if value is not None:
                    line[key.removesuffix(" sd")] += f" ± {value:.4f}"
            elif key == "CR wire":
                line[key] = f"{value:.2%}"
            elif key.endswith(" MB") or key == "seconds":
                line[key] = f"{value:,.1f}"
            elif key == "p":
                line[key] = f"{value:.3g}"
            else:
                line[key] = f"{value:.4f}" if isinstance(value, float) else str(value)
        shown.append(line)
    return str(
        tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True)
    )


def curves(runs: dict[str, list[Cell]], metric: str, against: str) -> go.Figure:
    """Draw validation over rounds or over megabytes sent, each way together."""
    figure = go.Figure()
    for label, cells in runs.items():
        n_points = min(len(cell["curve"]) for cell in cells)
        points = [[cell["curve"][i] for cell in cells] for i in range(n_points)]
        figure.add_scatter(
            x=[mean(_abscissa(point, against) for point in own) for own in points],
            y=[mean(point[f"valid_{metric}"] for point in own) for own in points],
            name=label,
            mode="lines+markers",
        )
    title = "rounds" if against == "round" else "MB sent, uplink and downlink"
    figure.update_xaxes(title=title, type="linear" if against == "round" else "log")
    figure.update_yaxes(title=f"validation {metric}")
    figure.update_layout(title=f"{metric} against {title}", template="plotly_white")
    return figure


def _abscissa(point: dict[str, float], against: str) -> float:
    if against == "round":
        return point["round"] + 1
    return (point["uplink_bytes"] + point["downlink_bytes"]) / _MB


def pareto(rows: list[dict[str, Any]], metric: str) -> go.Figure:
    """Draw test quality against all megabytes sent; a line through the best."""
    figure = go.Figure()
    points = sorted(
        (row["uplink MB"] + row["downlink MB"], row[metric], row["method"])
        for row in rows
    )
    figure.add_scatter(
        x=[size for size, _, _ in points],
        y=[value for _, value, _ in points],
        text=[label for _, _, label in points],
        mode="markers+text",
        textposition="top center",
        showlegend=False,
    )
    best: list[tuple[float, float]] = []
    for size, value, _ in points:
        if not best or value > best[-1][1]:
            best.append((size, value))
    figure.add_scatter(
        x=[size for size, _ in best],
        y=[value for _, value in best],
        mode="lines",
        line={"dash": "dot", "shape": "hv"},
        name="nothing is better for less",
    )
    figure.update_xaxes(title="MB sent, uplink and downlink", type="log")
    figure.update_yaxes(title=f"test {metric}")
    figure.update_layout(title="Quality against cost", template="plotly_white")
    return figure


def _write(
    folder: Path, rows: list[dict[str, Any]], runs: dict[str, list[Cell]], title: str
) -> None:
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "table.md").write_text(markdown(rows) + "\n", encoding="utf-8")
    metric = next(iter(next(iter(runs.values()))[0]["result"]["test_result"]))
    figures = [
        pareto(rows, metric),
        curves(runs, metric, "round"),
        curves(runs, metric, "megabytes"),
    ]
    plots = "".join(
        figure.to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate(figures)
    )
    body = tabulate(rows, headers="keys", tablefmt="html", floatfmt=".4f")
    note = (
        "p: Wilcoxon's signed ranks over users' reciprocal ranks in the test, 0 beyond "
        f"topk, two-sided, against {escape(rows[0]['method'])}. Catch-up is not sent, "
        "and in no plot."
    )
    (folder / "report.html").write_text(
        f"<!doctype html><meta charset='utf-8'><title>{escape(title)}</title>"
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.2em .6em;"
        "text-align:right}</style>"
        f"<h1>{escape(title)}</h1>{body}<p>{note}</p>{plots}",
        encoding="utf-8",
    )
