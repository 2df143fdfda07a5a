"""The numbers of an exhibit: for each a method, a setting, and the keys of its runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from recbole_fedras.experiments.identity import Keys


@dataclass(frozen=True, slots=True)
class Entry:
    """One number of an exhibit: a method in a setting, on a dataset, with a model.

    Attributes
    ----------
    dataset, model, method, setting : str
        Labels.
    keys : dict
        Keys of its runs, but for seed and learning rate.
    tuning : dict
        The same, of the runs that choose its learning rate.
    learning_rates : list of float
        The grid that it is chosen from.
    tuned : tuple of str
        What shares a learning rate.
    paper : list of float or None
        The paper's values of the exhibit's metrics, if it prints any.
    """

    dataset: str
    model: str
    method: str
    setting: str
    keys: Keys
    tuning: Keys
    learning_rates: list[float]
    tuned: tuple[str, ...]
    paper: list[float] | None


def entries_of(exhibit: dict[str, Any]) -> Iterator[Entry]:
    """Yield every entry of an exhibit's keys, in the order of its table."""
    for dataset, model in product(exhibit["datasets"], exhibit["models"]):
        for method in exhibit["methods"]:
            yield from _of_method(exhibit, dataset, model, method)


def _of_method(
    exhibit: dict[str, Any], dataset: str, model: str, method: str
) -> Iterator[Entry]:
    keys_of_method = exhibit["methods"][method]
    run = {"dataset": dataset, "model": model} | exhibit["keys"]
    settings = {
        str(label): keys.get(dataset, keys)
        for label, keys in exhibit["settings"].items()
    }
    tuning = exhibit.get("tuning", next(iter(settings.values())))
    tuning = tuning.get(dataset, tuning)
    grid = exhibit["learning_rates"]
    grid = grid[model] if isinstance(grid, dict) else grid
    printed = exhibit.get("paper", {}).get(dataset, {}).get(model, {})
    values = printed.get(method, [None] * len(settings))
    by_setting = exhibit.get("tuned_by_setting", False)
    for (setting, keys), paper in zip(settings.items(), values, strict=True):
        yield Entry(
            dataset,
            model,
            method,
            setting,
            run | keys | keys_of_method,
            run | (keys if by_setting else {}) | tuning | keys_of_method,
            grid,
            (dataset, model, method, setting if by_setting else ""),
            paper,
        )
