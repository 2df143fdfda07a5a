"""What is checked of a comparison before any of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from recbole_fedras.config import Config
from recbole_fedras.errors import BudgetError, ConfigError
from recbole_fedras.experiments.identity import Keys, Measure
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.sweep import Sweep
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.run.setup import make_simulation, prepare_data
from recbole_fedras.run.trainer import check_after_warmup


def require_one_test(methods: dict[str, Keys]) -> None:
    """Refuse methods that are not tested alike."""
    first: dict[str, Any] = {}
    for label, keys in methods.items():
        config = Config(config_dict=keys)
        test = {
            "dataset": (config.run_settings().dataset, config.run_settings().data_path),
            "rows": config.data_settings(),
            "metrics": (config["metrics"], config["valid_metric"]),
            "candidates": config.evaluation_settings(),
        }
        first = first or test
        for what, value in test.items():
            if value != first[what]:
                raise ConfigError(
                    f"{label!r} and {next(iter(methods))!r} are not tested alike, "
                    f"their {what} differ; compare on one dataset, split and metrics"
                )


def check_cells(
    cells: list[Keys], sweep: Sweep, measure: Measure = train_and_test
) -> None:
    """Refuse what could not run: keys of all, budgets of those that have not run."""
    firsts = [cell for cell in cells if cell["seed"] == cells[0]["seed"]]
    for _, error in _unable(firsts, sweep, measure):
        raise error


def _unable(
    cells: Sequence[Keys], sweep: Sweep, measure: Measure
) -> Iterator[tuple[int, BudgetError]]:
    """Yield places of cells that have not run and have too few bytes to, and why."""
    missing = {
        place: Config(config_dict=cell)
        for place, cell in enumerate(cells)
        if sweep.find(cell, measure) is None
    }
    train_data = None
    for place, config in missing.items():
        train_data = train_data or prepare_data(config)[0]
        try:
            check_after_warmup(config, make_simulation(config, train_data, Simulation))
        except BudgetError as error:
            yield place, error


def refused_of(methods: dict[str, Keys], seed: int, sweep: Sweep) -> dict[str, str]:
    """Return why methods have too few bytes to work with.

    Raises
    ------
    BudgetError
        If all have.
    """
    labels, cells = list(methods), [keys | {"seed": seed} for keys in methods.values()]
    errors = dict(_unable(cells, sweep, train_and_test))
    if len(errors) == len(labels):
        raise errors[0]
    return {labels[place]: str(error) for place, error in errors.items()}
