"""Seconds that a round takes, of CPU and by the clock, by compressor and policy.

``python benchmarks/rounds.py [--rounds=8] [--after=3] [--only=KLT,KLT+personal]
[--key=value]``: medians of some rounds after the first ones, MF, one thread (or, as a
run does, ``--n_jobs=-1``); ML-1M if RECBOLE_DATA names a folder that has it, else
ML-100K. With ``personal`` the first rounds are the cheapest: clients that have taken
part in the same rounds share work.
"""

from __future__ import annotations

import os
import sys
import tempfile
from statistics import median
from time import perf_counter, process_time
from typing import Any

from threads import DATASET, simulate  # beside this file

from recbole_fedras.config.sources import read_arguments
from recbole_fedras.experiments.tables import Table
from recbole_fedras.federation.simulation import PHASES

CASES = (
    "none,TopK,SVD,KLT,FedRAS,none+personal,TopK+personal,KLT+personal,"
    "none+grid,TopK+grid,KLT+grid"
)


def measure(
    case: str, keys: dict[str, Any], after: int, n_rounds: int, data: Any
) -> dict[str, Any]:
    """Return a row of the table."""
    compressor, _, replica = case.partition("+")
    methods = {"compressor": compressor, "replica": replica or "broadcast"}
    simulation = simulate("MF", methods | keys, data, after)
    cpu, clock, reports = [], [], []
    for _ in range(n_rounds):
        cpu_start, start = process_time(), perf_counter()
        reports.append(simulation.run_round())
        clock.append(perf_counter() - start)
        cpu.append(process_time() - cpu_start)
    phases = {
        phase.replace("_", " "): median(report.seconds[phase] for report in reports)
        for phase in PHASES
    }
    taken = {"CPU s": median(cpu), "s": median(clock)}
    return {"run": case.replace("+", ", "), **taken, **phases}


def main(argv: list[str]) -> None:
    """Measure every case and print a table."""
    given: dict[str, Any] = dict(read_arguments(argv))
    after, n_rounds = int(given.pop("after", 3)), int(given.pop("rounds", 8))
    cases = str(given.pop("only", CASES)).split(",")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for logs
        data: dict[str, Any] = {}
        rows = [measure(case, given, after, n_rounds, data) for case in cases]
    note = "*s* and phases are seconds by the clock."
    print(Table(f"{DATASET} {' '.join(argv)}", rows, note).markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
