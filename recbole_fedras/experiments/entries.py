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


def entries_of(text: dict[str, Any]) -> Iterator[Entry]:
    """Yield every entry of an exhibit's keys, in the order of its table."""
    for dataset, model in product(text["datasets"], text["models"]):
        for method in text["methods"]:
            yield from _of_method(text, dataset, model, method)


def _of_method(
    text: dict[str, Any], dataset: str, model: str, method: str
) -> Iterator[Entry]:
    own = text["methods"][method]
    run = {"dataset": dataset, "model": model} | text["keys"]
    settings = {
        str(label): keys.get(dataset, keys) for label, keys in text["settings"].items()
    }
    tuning = text.get("tuning", next(iter(settings.values())))
    tuning = tuning.get(dataset, tuning)
    grid = text["learning_rates"]
    grid = grid[model] if isinstance(grid, dict) else grid
    printed = text.get("paper", {}).get(dataset, {}).get(model, {})
    values = printed.get(method, [None] * len(settings))
    by_setting = text.get("tuned_by_setting", False)
    for (setting, keys), paper in zip(settings.items(), values, strict=True):
        yield Entry(
            dataset,
            model,
            method,
            setting,
            run | keys | own,
            run | (keys if by_setting else {}) | tuning | own,
            grid,
            (dataset, model, method, setting if by_setting else ""),
            paper,
        )
