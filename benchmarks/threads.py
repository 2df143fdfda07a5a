"""Seconds of training and uplink coding of a cohort with one thread and with more.

``python benchmarks/threads.py [--n_jobs=2] [--only=MF+KLT,NCF+none] [--key=value]``:
every compressor that ships, MF, and NCF without one; ML-1M if RECBOLE_DATA names a
folder that has it, else ML-100K. A shard answers the same invitations again and again,
by turns with one thread and with ``n_jobs``, and the least time of either counts.
*coding* is the share of one thread's time that is not training. The limit is what the
machine gives: the time that one process takes for training with one thread, times their
number, over the time that as many at once take.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from recbole_fedras.config import Config
from recbole_fedras.config.registry import shipped
from recbole_fedras.config.sources import read_arguments
from recbole_fedras.experiments.tables import Table
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.run.setup import prepare_data, simulated
from recbole_fedras.run.trainer import FederatedTrainer

FOLDER = Path(os.environ.get("RECBOLE_DATA", ""))
ML_1M = (FOLDER / "ml-1m" / "ml-1m.inter").is_file()
DATASET = "ml-1m" if ML_1M else "ml-100k"
FOR_OTHER_MODELS = {"BinaryCodes"}
PASSES = 5


def simulate(
    model: str, keys: dict[str, Any], data: dict[str, Any], n_rounds: int = 3
) -> Simulation:
    """Return a simulation some rounds old; ``data`` are loaded once for all."""
    quiet = {"show_progress": False, "state": "ERROR", "n_jobs": 1}
    where = {"data_path": str(FOLDER)} if ML_1M else {}
    config = Config(model, DATASET, None, quiet | where | keys)
    data.setdefault("parts", prepare_data(config))
    train = data["parts"][0]
    network = config.make_model(train._dataset)
    simulation = FederatedTrainer(config, network, simulated(config, train)).simulation
    for _ in range(n_rounds):
        simulation.run_round()
    return simulation


def seconds(simulation: Simulation, n_jobs: int) -> tuple[float, float]:
    """Return what a cohort's answers take, and what of it is training."""
    invitations = list(simulation.server.invite())
    simulation.shard.seconds.taken()
    with torch.no_grad(), threads(n_jobs):
        start = perf_counter()
        for _ in simulation.shard.participate(iter(invitations)):
            pass
        taken = perf_counter() - start
    simulation.server.rollback()
    return taken, simulation.shard.seconds.taken()["local_training"]


def least(simulation: Simulation, *n_jobs: int) -> list[tuple[float, float]]:
    """Return the least of some passes, by turns, of each number of threads."""
    passes = [[seconds(simulation, n) for n in n_jobs] for _ in range(PASSES)]
    of_each = zip(*passes, strict=True)
    return [tuple(map(min, zip(*taken, strict=True))) for taken in of_each]


def alone(start: Any) -> float:
    """Return seconds of training with one thread, once all processes are there."""
    simulation = simulate("MF", {"compressor": "none"}, {})
    start.wait()
    return least(simulation, 1)[0][1]


def limit(n: int) -> float:
    """Return how many times as fast n processes are together than one alone."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        times = {}
        for count in (1, n):
            with multiprocessing.get_context("spawn").Pool(count) as pool:
                start = manager.Barrier(count)
                times[count] = max(pool.map(alone, [start] * count, chunksize=1))
    return n * times[1] / times[n]


def compare(case: str, keys: dict[str, Any], n_jobs: int, data: Any) -> dict[str, Any]:
    """Return a row of the table."""
    model, compressor = case.split("+")
    simulation = simulate(model, {"compressor": compressor} | keys, data)
    (one, training), (several, training_of_several) = least(simulation, 1, n_jobs)
    return {
        "run": case.replace("+", " + "),
        "1 thread, s": one,
        f"{n_jobs} threads, s": several,
        "times as fast": one / several,
        "training": training / training_of_several,
        "coding": 1 - training / one,
    }


def main(argv: list[str]) -> None:
    """Measure every case and print a table."""
    given: dict[str, Any] = dict(read_arguments(argv))
    n_jobs = int(given.pop("n_jobs", 2))
    names = [name for name in shipped("compressor") if name not in FOR_OTHER_MODELS]
    cases = [*(f"MF+{name}" for name in names), "NCF+none", "NCF+KLT"]
    cases = str(given.pop("only", ",".join(cases))).split(",")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # for logs
        data: dict[str, Any] = {}
        rows = [compare(case, given, n_jobs, data) for case in cases]
        note = f"Of processes that share nothing: {limit(n_jobs):.2f} times as fast."
    print(Table(f"{DATASET} {' '.join(argv)}", rows, note).markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
