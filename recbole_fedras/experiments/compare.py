"""Compares compressors on a dataset: a table, and one page with the plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import Config, registry
from recbole_fedras.errors import ConfigError, NonFiniteError
from recbole_fedras.experiments import figures
from recbole_fedras.experiments.centralised import centralised
from recbole_fedras.experiments.clients import (
    gap_columns,
    group_rows,
    world_columns,
)
from recbole_fedras.experiments.identity import Keys, Measure, Outcome
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.panels import svg
from recbole_fedras.experiments.provenance import note_of_other_code
from recbole_fedras.experiments.summary import summaries
from recbole_fedras.experiments.sweep import RELABELLING, Sweep
from recbole_fedras.experiments.tables import SPREAD, Table
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.run.setup import make_simulation, prepare_data
from recbole_fedras.run.trainer import check_after_warmup

#: Keys that declare a compressor of the user's own, which ``compressors`` may name.
_DECLARING = {"compressor", "compressor_class"}

#: Keys that runs differ in.
_COMPARED = RELABELLING | {"compression_rate", "seed"}


def compare(
    compressors: Sequence[str],
    rates: Sequence[float],
    keys: Keys,
    seeds: Sequence[int],
    sweep: Sweep,
    target: float = 0.95,
    central: bool = False,
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
    sweep : Sweep
        Whose folder is for the runs, ``table.md``, ``.csv`` and ``.tex``, and
        ``report.html``; and ``clients.md`` and the others, of groups of clients.
    target : float
        Of the first method's best validation score: the share that hours are told of,
        where runs are in a described world.
    central : bool
        Whether the table also has RecBole's BPR, trained on everybody's data.

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
    cells = _cells(methods_of(compressors, rates, keys), seeds)
    check_cells([cell for of_method in cells.values() for cell in of_method], sweep)
    outcomes = iter(
        sweep.run([c for group in cells.values() for c in group], "Compare")
    )
    runs = {label: [next(outcomes) for _ in group] for label, group in cells.items()}
    refuse_diverged(runs)
    first = next(iter(runs.values()))
    rows = summaries(runs | _centralised(next(iter(cells.values())), sweep, central))
    for row, group in zip(rows, runs.values(), strict=False):  # then the centralised
        row |= gap_columns(group) | world_columns(group, first, target)
    rows = [dict.fromkeys(rows[0], "") | row for row in rows]
    note = note_of_other_code(
        [run for group in runs.values() for run in group], train_and_test
    )
    dataset, tried = first[0]["result"]["dataset"], ", ".join(map(str, seeds))
    table = Table(f"{dataset}, seeds {tried}", rows, note)
    table.write(sweep.folder)
    groups = [row for label, group in runs.items() for row in group_rows(label, group)]
    clients = Table(f"Groups of clients, {table.title}", groups)
    if groups:
        clients.write_files(sweep.folder, "clients")
    page = _page(table, clients, _figures(rows[: len(runs)], runs))
    (sweep.folder / "report.html").write_text(page, encoding="utf-8")
    print(f"Tables and report.html are in {sweep.folder}")
    return rows


def _centralised(
    cells: list[Keys], sweep: Sweep, wanted: bool
) -> dict[str, list[Outcome]]:
    if not wanted:
        return {}
    runs = sweep.run(cells, "Centralised", centralised)
    return {"RecBole's BPR, centralised": runs}


def methods_of(
    compressors: Sequence[str], rates: Sequence[float], keys: Keys
) -> dict[str, Keys]:
    """Return the keys of each compressor at each rate, by what the table calls it."""
    declared = _declared(keys)
    belonging = _DECLARING.union(*declared.values())
    shared = {key: value for key, value in keys.items() if key not in belonging}
    methods: dict[str, Keys] = {}
    for name, rate in product(dict.fromkeys(compressors), sorted(set(rates))):
        label = name if name == "none" else f"{name} {100 * rate:.10g} %"
        chosen = {"compressor": name, "compression_rate": rate}
        methods.setdefault(label, shared | chosen | declared.get(name, {}))
    return methods


def _cells(methods: dict[str, Keys], seeds: Sequence[int]) -> dict[str, list[Keys]]:
    return {
        label: [keys | {"seed": seed} for seed in dict.fromkeys(seeds)]
        for label, keys in methods.items()
    }


def check_cells(
    cells: list[Keys], sweep: Sweep, measure: Measure = train_and_test
) -> None:
    """Refuse what could not run: keys of all, budgets of those that have not run."""
    missing = [
        Config(config_dict=cell)
        for cell in cells
        if sweep.find(cell, measure) is None and cell["seed"] == cells[0]["seed"]
    ]
    if missing:
        train_data, _, _ = prepare_data(missing[0])
        for config in missing:
            check_after_warmup(config, make_simulation(config, train_data, Simulation))


def refuse_diverged(runs: dict[str, list[Outcome]]) -> None:
    """Raise a NonFiniteError for the first run that diverged."""
    for label, group in runs.items():
        for run in group:
            if run["result"] is None:
                seed = run["config"]["seed"]
                raise NonFiniteError(f"{label}, seed {seed}: {run['error']}")


def _declared(keys: Keys) -> dict[str, Keys]:
    """Return class and hyper-parameters of a compressor of the user's own, by its name.

    Raises
    ------
    ConfigError
        If a key is given that is what the runs differ in.
    """
    refused = sorted(_COMPARED & keys.keys())
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
    group = {"compressor_class", *registry.hyper_parameters(found)} & keys.keys()
    return {keys["compressor"]: {key: keys[key] for key in group}}


def _figures(
    rows: list[dict[str, Any]], runs: dict[str, list[Outcome]]
) -> dict[str, Figure]:
    """Draw quality against cost and learning curves, of the first metric."""
    result = next(iter(runs.values()))[0]["result"]
    dataset, metric = result["dataset"], next(iter(result["test_result"]))
    points = [
        row
        | {"dataset": dataset, "metric": metric, "setting": ""}
        | {"ours": row[metric], "sd": row[metric + SPREAD]}
        for row in rows
    ]
    curves = [
        figures.Curve(dataset, label, run["curve"])
        for label, group in runs.items()
        for run in group
    ]
    sent = "MB sent, uplink and downlink"
    drawn = {
        "Quality against cost": figures.draw_bytes(points, sent),
        f"{metric} against rounds": figures.draw_curves(curves, [metric], "round"),
        f"{metric} against MB sent": figures.draw_curves(
            curves, [metric], sent, "megabytes"
        ),
    }
    if all("hours" in row for curve in curves for row in curve.rounds):
        hours = "hours in the described world"
        drawn[f"{metric} against hours"] = figures.draw_curves(
            curves, [metric], hours, "hours"
        )
    return drawn


def _page(table: Table, clients: Table, drawn: dict[str, Figure]) -> str:
    """Put tables and figures into one page that fetches nothing."""
    title, first = escape(table.title), escape(table.rows[0]["method"])
    note = (
        "[ ]: 95 % of a bootstrap over users and seeds, of - first the same of both "
        "methods. p: Wilcoxon's signed ranks "
        "over users' reciprocal ranks in the test, 0 beyond topk, two-sided, against "
        f"{first}; effect: their rank-biserial correlation, from -1, all users worse, "
        "to 1; adjusted: for so many tests, by Benjamini and Hochberg. Catch-up is not "
        "sent, and in no plot."
    )
    plots = "".join(
        f"<h2>{escape(name)}</h2>{svg(figure)}" for name, figure in drawn.items()
    )
    if clients.rows:
        plots += f"<h2>{escape(clients.title)}</h2>{clients.shown('html')}"
    return (
        f"<!doctype html><meta charset='utf-8'><title>{title}</title>"
        "<style>body{font-family:sans-serif;margin:2em}td,th{padding:.2em .6em;"
        "text-align:right}svg{max-width:100%;height:auto}</style>"
        f"<h1>{title}</h1>{table.shown('html')}<p>{note}</p>"
        f"<p>{escape(table.note)}</p>{plots}"
    )
