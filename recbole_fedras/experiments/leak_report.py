"""Compares what methods give away: a table, attackers one by one, and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from statistics import mean, stdev
from typing import Any, NamedTuple

from recbole_fedras.config import Config
from recbole_fedras.errors import ConfigError
from recbole_fedras.experiments.checks import check_cells
from recbole_fedras.experiments.compare import refuse_diverged
from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.experiments.leak import attackers, leak
from recbole_fedras.experiments.methods import methods_of
from recbole_fedras.experiments.panels import save
from recbole_fedras.experiments.privacy_figure import draw_privacy
from recbole_fedras.experiments.provenance import note_of_other_code, other_code
from recbole_fedras.experiments.summary import cost
from recbole_fedras.experiments.sweep import Sweep
from recbole_fedras.experiments.tables import SPREAD, Table
from recbole_fedras.run.stages import tell

Row = dict[str, Any]

#: Unless other keys are given: long enough for a model, short enough to wait for.
SHORT = {"epochs": 100, "eval_step": 20}

#: Keys that runs differ in, besides those that ``compare`` refuses.
_COMPARED = {
    "train_neg_sample_args": "--negatives",
    "transforms": "--protections",
}

_NOTE = (
    "AUC and precision (at a client's true count), over all items, of the attacker "
    "with the highest AUC; 0.5 and the share of a client's items are chance. "
    "auc/table.md and precision/table.md have each attacker; what popularity finds, it "
    "finds without the client's updates."
)


class Grid(NamedTuple):
    """What is compared: all combinations.

    Attributes
    ----------
    compressors : sequence of str
    rates : sequence of float
    negatives : sequence of int
        For each interaction and local epoch.
    protections : sequence of str
        ``none``, or names of transforms joined by ``+``.
    seeds : sequence of int
    """

    compressors: Sequence[str]
    rates: Sequence[float]
    negatives: Sequence[int]
    protections: Sequence[str]
    seeds: Sequence[int]


class _Label(NamedTuple):
    method: str
    negatives: int
    protection: str


def report_leaks(
    grid: Grid, keys: Keys, sweep: Sweep, style: str = "markdown"
) -> list[Row]:
    """Run all combinations; write and print tables, and draw ``leak.png``.

    Parameters
    ----------
    grid : Grid
    keys : dict
        Keys that all runs have in common; above :data:`SHORT`.
    sweep : Sweep
        Whose folder is for runs, ``table.md``, ``.csv`` and ``.tex``, the same of each
        attacker in ``auc/`` and ``precision/``, and the figure.
    style : {'markdown', 'latex', 'csv'}
        Of the tables that are printed.

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
    attackers(Config(config_dict=keys))  # refuse others here
    labels = dict(_labelled(grid, SHORT | keys))
    cells = {
        label: [own | {"seed": seed} for seed in dict.fromkeys(grid.seeds)]
        for label, own in labels.items()
    }
    every = [cell for of_label in cells.values() for cell in of_label]
    check_cells(every, sweep, leak)
    outcomes = iter(sweep.run(every, "Leak", leak))
    runs = {label: [next(outcomes) for _ in group] for label, group in cells.items()}
    refuse_diverged({" ".join(map(str, label)): group for label, group in runs.items()})
    rows = [_row(label, group) for label, group in runs.items()]
    _write(rows, runs, sweep, style)
    return rows


def _labelled(grid: Grid, keys: Keys) -> Iterator[tuple[_Label, Keys]]:
    """Yield the keys of each combination, by what the table calls it."""
    for key, option in _COMPARED.items():
        if key in keys:
            raise ConfigError(
                f"{key} must not be set: that is what is compared, by {option}"
            )
    methods = methods_of(grid.compressors, grid.rates, keys)
    for (method, of_method), negatives, protection in product(
        methods.items(), dict.fromkeys(grid.negatives), dict.fromkeys(grid.protections)
    ):
        transforms = [] if protection == "none" else protection.split("+")
        own = {
            "train_neg_sample_args": {"sample_num": negatives},
            "transforms": transforms,
        }
        yield _Label(method, negatives, protection), of_method | own


def _row(label: _Label, runs: list[Outcome]) -> Row:
    """Return one row: quality, what the strongest attacker finds, and cost."""
    results = [run["result"] for run in runs]
    measured = [result["test_result"] for result in results]
    names = [key[4:] for key in measured[0] if key.startswith("AUC ")]
    best = max(names, key=lambda name: mean(one[f"AUC {name}"] for one in measured))
    quality = [key for key in measured[0] if not key.startswith(("AUC", "precision"))]
    row: Row = label._asdict()
    row |= _averaged({key: [one[key] for one in measured] for key in quality})
    row |= _averaged(
        {
            key: [one[f"{key} {best}"] for one in measured]
            for key in ("AUC", "precision")
        }
    )
    row |= {"attacker": best} | cost([result["communication"] for result in results])
    return row | {"other code": other_code(runs, leak)}


def _by_attacker(of: str, label: _Label, runs: list[Outcome]) -> Row:
    """Return one row: what each attacker finds, its AUC or precision."""
    measured = [run["result"]["test_result"] for run in runs]
    keys = [key for key in measured[0] if key.startswith(f"{of} ")]
    values = {
        key.removeprefix(f"{of} "): [one[key] for one in measured] for key in keys
    }
    return label._asdict() | _averaged(values)


def _averaged(values: dict[str, list[float]]) -> Row:
    row: Row = {}
    for key, of_seeds in values.items():
        row[key] = mean(of_seeds)
        row[key + SPREAD] = stdev(of_seeds) if len(of_seeds) > 1 else None
    return row


def _write(
    rows: list[Row], runs: dict[_Label, list[Outcome]], sweep: Sweep, style: str
) -> None:
    every = [run for group in runs.values() for run in group]
    dataset = every[0]["result"]["dataset"]
    seeds = dict.fromkeys(str(run["config"]["seed"]) for run in every)
    title = f"{dataset}, seeds {', '.join(seeds)}"
    notes = [_NOTE, note_of_other_code(every, leak)]
    for of in ("AUC", "precision"):
        of_each = [_by_attacker(of, label, group) for label, group in runs.items()]
        Table(f"{of} of each attacker: {title}", of_each).write(
            sweep.folder / of.lower(), style
        )
    Table(title, rows, "\n\n".join(filter(None, notes))).write(sweep.folder, style)
    points = [
        row
        | {"dataset": dataset, "metric": metric, "ours": row[metric]}
        | {"setting": f"{row['negatives']} negatives, {row['protection']}"}
        for row in rows
        for metric in ("AUC", _quality(rows))
    ]
    figure = draw_privacy(points, "AUC of the strongest attacker")
    save(figure, sweep.folder / "leak.png")
    tell(f"tables and leak.png are in {sweep.folder}")


def _quality(rows: list[Row]) -> str:
    """Name the first metric of quality."""
    return next(key for key in rows[0] if key not in _Label._fields)
