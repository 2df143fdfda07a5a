"""Seconds a round on the CPU and on a GPU, by turns, and how far apart they end.

``python benchmarks/gpu.py [--key=value ...]``. On a GPU clients train in batches of
tensors, not compiled; compression is the CPU's on either. ``difference`` is that of the
item tables, by norm, and says what rounding became in so many rounds.
"""

from __future__ import annotations

import csv
import io
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.config.sources import read_arguments
from recbole_fedras.experiments.tables import Table
from recbole_fedras.quick_start import run_recbole_fedras

CASES = [
    ("MF", "none"),
    ("MF", "FedRAS"),
    ("NCF", "none"),
    ("NCF", "KLT"),
    ("FedNeuMF", "none"),
]
KEYS = {"epochs": 12, "eval_step": 12, "valid_metric": "HIT@10", "state": "ERROR"}
#: Rounds that load libraries and compile.
FIRST = 2


class Outcome(NamedTuple):
    """What a run took and found."""

    training: float
    round: float
    hit: float
    table: Tensor


def outcome(model: str, keys: dict[str, object]) -> Outcome:
    """Run, and return medians over its rounds, the first ones left out."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        own = {"checkpoint_dir": folder, "show_progress": False}
        result = run_recbole_fedras(model, config_dict=KEYS | own | keys)
        run = Path(result["run_folder"])
        with (run / "rounds.csv").open() as file:
            rows = list(csv.DictReader(file))[FIRST:]
        state = read_checkpoint(run / "best.pth")["simulation"]["server"]
        table = state["parameters"]["item_table"].clone()
    return Outcome(
        median(float(row["seconds_local_training"]) for row in rows),
        median(float(row["seconds_total"]) for row in rows),
        result["test_result"]["hit@10"],
        table,
    )


def main(argv: list[str]) -> None:
    """Run every case by turns, and print a table."""
    given: dict[str, object] = dict(read_arguments(argv))
    print(torch.cuda.get_device_name(), flush=True)
    rows = []
    for model, compressor in CASES:
        keys = {"compressor": compressor} | given
        cpu, gpu = (outcome(model, keys | {"use_gpu": use}) for use in (False, True))
        apart = float((cpu.table - gpu.table).norm() / cpu.table.norm())
        row = {"run": f"{model} + {compressor}", "CPU, s": cpu.round}
        row |= {"GPU, s": gpu.round, "training, CPU": cpu.training}
        row |= {"training, GPU": gpu.training, "hit@10, CPU": cpu.hit}
        rows.append(row | {"hit@10, GPU": gpu.hit, "difference": apart})
    print(Table(" ".join(argv) or "ml-100k", rows, "Seconds a round.").markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
