"""Compares methods on a dataset: a table, and a page with all that one may ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from recbole_fedras.errors import FederationError, NonFiniteError
from recbole_fedras.experiments.centralised import centralised
from recbole_fedras.experiments.checks import refused_of, require_one_test
from recbole_fedras.experiments.clients import (
    gap_columns,
    group_rows,
    world_columns,
)
from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.page import Comparison, write_page
from recbole_fedras.experiments.provenance import note_of_other_code
from recbole_fedras.experiments.summary import measured, summaries
from recbole_fedras.experiments.sweep import Sweep
from recbole_fedras.experiments.tables import SPREAD, Table
from recbole_fedras.experiments.tuning import tuned
from recbole_fedras.run.progress import compiling
from recbole_fedras.run.stages import stage, tell

#: Columns of the table that is shown, as one puts into a paper, behind the metrics; all
#: are in ``table.csv`` and in the report.
_SHOWN = (
    "p adjusted", "uplink MB", "downlink MB", "catch-up MB", "CR charged", "hours*",
    "seconds", "learning rate", "other code",
)  # fmt: skip


#: What is trained on everybody's data.
_CENTRAL = "RecBole's BPR, centralised"

Row = dict[str, Any]


class Asked(NamedTuple):
    """What a comparison is to say, and how.

    Attributes
    ----------
    target : float
        Of the first method's best validation score: the share that hours are told of,
        where runs are in a described world.
    centralised : bool
        Whether the table also has RecBole's BPR, trained on everybody's data.
    learning_rates : sequence of float
        Of which each method is given that with the best validation score, with the
        first seed, unless it names its own; none: as configured.
    style : {'markdown', 'latex', 'csv'}
        Of the table that is printed, as CSV with all columns.
    """

    target: float = 0.95
    centralised: bool = False
    learning_rates: Sequence[float] = ()
    style: str = "markdown"


def compare(
    methods: dict[str, Keys], seeds: Sequence[int], sweep: Sweep, asked: Asked
) -> list[dict[str, Any]]:
    """Run every method with every seed; write and print the table.

    Parameters
    ----------
    methods : dict of str to dict
        The keys of each, by what the table calls it. The others are tested against the
        first.
    seeds : sequence of int
    sweep : Sweep
        Whose folder is for the runs, ``table.md``, ``.csv`` and ``.tex``, and
        ``report.html``; and ``clients.md`` and the others, of groups of clients.
    asked : Asked

    Returns
    -------
    list of dict
        The table's rows. Of a method that has failed there is the reason.

    Raises
    ------
    ConfigError
        For a configuration that cannot work, before any run.
    FederationError
        If all methods failed.
    """
    with stage("checking what is to be run", doing=compiling):
        require_one_test(methods)
        refused = refused_of(methods, seeds[0], sweep)
    for label, reason in refused.items():
        tell(f"{label} is left out: {reason}")
    able = {label: methods[label] for label in methods if label not in refused}
    cells = _cells(tuned(able, asked.learning_rates, seeds[0], sweep), seeds)
    outcomes = iter(
        sweep.run([c for of in cells.values() for c in of], "Compare", tolerant=True)
    )
    runs = {label: [next(outcomes) for _ in group] for label, group in cells.items()}
    failed = refused | _failures(runs)
    good = {label: group for label, group in runs.items() if label not in failed}
    central = {}
    if asked.centralised:
        of_first = cells[next(iter(good))]
        central = {_CENTRAL: sweep.run(of_first, "Centralised", centralised)}
    with stage("writing tables and report"):
        rows = _rows(good, central, failed, [*methods, *central], asked.target)
        table, shown = _write(rows, good, seeds, sweep)
    whole = asked.style == "csv"
    print((table if whole else shown).printed(asked.style), end="")
    tell(f"tables and report.html are in {sweep.folder}")
    if sweep.models:
        tell(f"models are in {sweep.models}")
    return rows


def _cells(methods: dict[str, Keys], seeds: Sequence[int]) -> dict[str, list[Keys]]:
    return {
        label: [keys | {"seed": seed} for seed in dict.fromkeys(seeds)]
        for label, keys in methods.items()
    }


def refuse_diverged(runs: dict[str, list[Outcome]]) -> None:
    """Raise a NonFiniteError for the first run that diverged."""
    for label, reason in _reasons(runs):
        raise NonFiniteError(f"{label}, {reason}")


def _reasons(runs: dict[str, list[Outcome]]) -> Iterator[tuple[str, str]]:
    for label, group in runs.items():
        for run in group:
            if run["result"] is None:
                yield label, f"seed {run['config']['seed']}: {run['error']}"


def _failures(runs: dict[str, list[Outcome]]) -> dict[str, str]:
    """Return why methods failed, with any seed: others' means would not be alike.

    Raises
    ------
    FederationError
        If all did.
    """
    failed = dict(reversed([*_reasons(runs)]))  # of each the first
    if len(failed) == len(runs):
        reasons = "; ".join(f"{label}, {reason}" for label, reason in failed.items())
        raise FederationError(f"all methods failed: {reasons}")
    return {label: failed[label] for label in runs if label in failed}


def _rows(
    runs: dict[str, list[Outcome]],
    central: dict[str, list[Outcome]],
    failed: dict[str, str],
    order: Sequence[str],
    target: float,
) -> list[Row]:
    """Return a row for each method, in their order; of those that failed the reason."""
    first = next(iter(runs.values()))
    rows = {row["method"]: row for row in summaries(runs | central)}
    for label, group in runs.items():
        rows[label] |= gap_columns(group) | world_columns(group, first, target)
    rows |= {
        label: {"method": label, "failed": reason} for label, reason in failed.items()
    }
    columns = dict.fromkeys([*(key for row in rows.values() for key in row), "failed"])
    return [dict.fromkeys(columns, "") | rows[label] for label in order]


def _write(
    rows: list[Row], runs: dict[str, list[Outcome]], seeds: Sequence[int], sweep: Sweep
) -> tuple[Table, Table]:
    """Write tables and report; return the table, and what is shown of it."""
    every = [run for group in runs.values() for run in group]
    notes = [
        f"{row['method']} failed, {row['failed']}" for row in rows if row.get("failed")
    ]
    notes.append(note_of_other_code(every, train_and_test))
    table = Table(_title(every, seeds), rows, "\n\n".join(filter(None, notes)))
    shown = replace(table, rows=_shown(rows, [*measured(every[0])]))
    shown.write_files(sweep.folder, "table")
    (sweep.folder / "table.csv").write_text(table.csv(), encoding="utf-8")
    groups = [row for label, group in runs.items() for row in group_rows(label, group)]
    clients = Table(f"Groups of clients, {table.title}", groups)
    if groups:
        clients.write_files(sweep.folder, "clients")
    write_page(sweep.folder / "report.html", Comparison(table, shown, clients, runs))
    return table, shown


def _title(runs: Sequence[Outcome], seeds: Sequence[int]) -> str:
    """Say what all runs have in common."""
    results = [run["result"] for run in runs]
    parts = [results[0]["dataset"]]
    for key, said in (("model", "{}"), ("rounds", "{} rounds")):
        if len({result[key] for result in results}) == 1:
            parts.append(said.format(results[0][key]))
    return ", ".join([*parts, "seeds " + " ".join(map(str, dict.fromkeys(seeds)))])


def _shown(rows: list[Row], metrics: Sequence[str]) -> list[Row]:
    """Leave out what one does not put into a paper; name what has failed."""
    first, *_ = metrics
    shown = ["method", *(f"{of}{end}" for of in metrics for end in ("", SPREAD))]
    shown += [
        key for key in rows[0]
        if any(fnmatchcase(key, pattern) for pattern in _SHOWN)
    ]  # fmt: skip
    if len({row["learning rate"] for row in rows} - {""}) < 2:
        shown.remove("learning rate")
    return [
        {key: row[key] for key in shown} | ({first: "failed"} if row["failed"] else {})
        for row in rows
    ]
