"""Seconds a round with clients in one process and in several, by turns.

``python benchmarks/shards.py [--n_shards=2] [--key=value ...]``. Each process has one
thread, so that processes are what is compared; ``--n_jobs=-1`` gives threads to either.
The limit is what this machine gives to as many runs of one process side by side, which
share nothing: the rounds that they do together in the time of one round alone.
"""

from __future__ import annotations

import csv
import multiprocessing
import sys
import tempfile
from pathlib import Path
from statistics import median

from recbole_fedras.config.sources import read_arguments
from recbole_fedras.experiments.tables import Table
from recbole_fedras.quick_start import run_recbole_fedras

CASES = [("NCF", "FedRAS"), ("NCF", "none"), ("MF", "TopK"), ("MF", "FedRAS")]
KEYS = {"epochs": 30, "eval_step": 0, "checkpoint_step": 100, "n_jobs": 1}
PASSES = 2


def seconds(model: str, keys: dict[str, object]) -> float:
    """Return the median of a run's rounds, the first two left out."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"checkpoint_dir": folder, "show_progress": False, "state": "ERROR"}
        result = run_recbole_fedras(model, config_dict=KEYS | quiet | keys, saved=False)
        with (Path(result["run_folder"]) / "rounds.csv").open() as file:
            rows = list(csv.DictReader(file))
    return median(float(row["seconds_total"]) for row in rows[2:])


def side_by_side(model: str, keys: dict[str, object], n_runs: int) -> float:
    """Return the seconds of a round of each of some runs at the same time."""
    with multiprocessing.get_context("spawn").Pool(n_runs) as pool:
        return max(pool.starmap(seconds, [(model, keys)] * n_runs))


def main(argv: list[str]) -> None:
    """Run every case by turns, and print a table."""
    given: dict[str, object] = dict(read_arguments(argv))
    n_shards = int(str(given.pop("n_shards", 2)))
    rows = []
    for model, compressor in CASES:
        keys = {"compressor": compressor} | given
        passes = [
            (
                seconds(model, keys),
                seconds(model, keys | {"n_shards": n_shards}),
                side_by_side(model, keys, n_shards),
            )
            for _ in range(PASSES)
        ]
        one, several, together = map(min, zip(*passes, strict=True))
        name = f"{model} + {compressor}"
        row = {"run": name, "1 process, s": one, f"{n_shards} processes, s": several}
        limit = n_shards * one / together
        rows.append(row | {"times as fast": one / several, "limit": limit})
    print(Table(" ".join(argv) or "ml-100k", rows, "Seconds a round.").markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
