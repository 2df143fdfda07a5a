"""What a sweep keeps of one run: its result, its curve and users' ranks."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_fedras.config import Config
from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.quick_start import run_recbole_fedras

#: What is kept of an evaluated round, besides its metrics.
_CURVE = ("uplink_bytes", "downlink_bytes", "catch_up_bytes")


def train_and_test(keys: Keys) -> Outcome:
    """Run once, and keep what is small: ``result``, ``curve`` and ``ranks``.

    Keys of the sweep's other methods are left out.
    """
    return kept(run_recbole_fedras(config_dict=used_of(keys)))


def used_of(keys: Keys) -> Keys:
    """Leave out keys of methods that a run does not have."""
    unused = Config(config_dict=keys).unused
    return {key: value for key, value in keys.items() if key not in unused}


def kept(result: dict[str, Any]) -> Outcome:
    """Return what is small of a run that has ended here."""
    run = Path(result.pop("run_folder"))
    curve = list(_curve(run / "rounds.csv"))
    return {"result": result, "curve": curve, "ranks": _ranks(run / "ranks.csv")}


def _curve(path: Path) -> Iterator[dict[str, float]]:
    sums = dict.fromkeys(_CURVE, 0.0)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for key in _CURVE:
                sums[key] += float(row[key])
            metrics = {
                key: float(value)
                for key, value in row.items()
                if key.startswith("valid_") and value
            }
            if row.get("world_hours"):
                sums["hours"] = float(row["world_hours"])
            if metrics:
                yield {"round": int(row["round"]), **sums, **metrics}


def _ranks(path: Path) -> list[int]:
    if not path.is_file():  # no metric counts hits
        return []
    with path.open(encoding="utf-8") as file:
        return [int(row["rank"]) for row in csv.DictReader(file)]
