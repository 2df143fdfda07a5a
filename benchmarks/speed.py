"""Every stage against its naive counterpart, side by side in one run.

    pip install -c constraints.txt ".[bench]" && pytest benchmarks/speed.py

Uses ML-1M if the environment variable RECBOLE_DATA names a folder that holds its atomic
file (``ml-1m/ml-1m.inter``), else ML-100K. The table of ratios stands at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from joblib import cpu_count
from sklearn.cluster import KMeans
from torch import nn

from recbole_fedras.compressor.base import (
    Budget,
    CohortUpdate,
    RoundContext,
    row_update,
)
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.fedras.kmeans import kmeans
from recbole_fedras.compressor.fedras.splitting import split_groups
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.config import Config
from recbole_fedras.federation.server.selection import select_cohort
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.quick_start import prepare_data
from recbole_fedras.run.trainer import FederatedTrainer

FOLDER = Path(os.environ.get("RECBOLE_DATA", ""))
ML_1M = (FOLDER / "ml-1m" / "ml-1m.inter").is_file()
JOBS = pytest.mark.parametrize("n_jobs", [1, cpu_count()])
ROUNDS = 5


def make_trainer(model: str, **keys: Any) -> tuple[FederatedTrainer, Any]:
    """Return a trainer and the loader of its validation part."""
    own = {"show_progress": False, "compressor": "none", **keys}
    if ML_1M:
        own["data_path"] = str(FOLDER)
    config = Config(model, "ml-1m" if ML_1M else "ml-100k", None, own)
    train, valid, _ = prepare_data(config)
    network = config.make_model(train._dataset)
    return FederatedTrainer(config, network, train), valid


@pytest.fixture(scope="module", autouse=True)
def _no_gradients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("logs"))
    with torch.no_grad():
        yield
    os.chdir(folder)


@pytest.fixture(scope="module")
def simulations() -> dict[str, Simulation]:
    """Return one simulation per model, some rounds old, so that updates are typical."""
    made = {}
    for model in ("MF", "NCF"):
        made[model] = make_trainer(model)[0].simulation
        for _ in range(10):
            made[model].run_round()
    return made


def cohort_of(simulation: Simulation) -> np.ndarray:
    """Return some round's cohort."""
    return select_cohort(simulation._eligible, simulation._cohort_size, 2020, 7)


def train_all(simulation: Simulation) -> Callable[[], None]:
    """Draw samples and train a cohort, as a round does."""

    def train() -> None:
        simulation._seconds = dict.fromkeys(["local_training"], 0.0)
        for part in simulation._parts(cohort_of(simulation)):
            simulation._train(part)

    return train


def naive_client(simulation: Simulation, client: int, rng: np.random.Generator) -> None:
    """Train one client as a RecBole user would: embeddings, an optimizer, autograd."""
    model, training = simulation._model, simulation.training
    items = nn.Embedding.from_pretrained(model.replicas()[0].clone(), freeze=False)
    user = nn.Parameter(model.client_rows()[client].clone())
    theta = {name: nn.Parameter(own.clone()) for name, own in model.theta().items()}
    optimizer = torch.optim.SGD(
        [
            {"params": items.parameters(), "lr": training.learning_rate},
            {"params": [user], "lr": training.user_learning_rate},
            {"params": list(theta.values()), "lr": training.theta_learning_rate / 256},
        ]
    )
    positives = simulation.clients.of(client)
    for _ in range(training.local_epochs):
        left = np.setdiff1d(np.arange(simulation.clients.n_items), positives)
        negatives = rng.choice(left, training.n_negatives * len(positives))
        rows = np.concatenate([positives, negatives])
        labels = np.zeros(len(rows), np.float32)
        labels[: len(positives)] = 1
        order = torch.from_numpy(rng.permutation(len(rows)))
        for batch in order.split(training.batch_size):
            optimizer.zero_grad()
            item = items(torch.from_numpy(rows)[batch])
            batched = {name: own[None] for name, own in theta.items()}
            logits = model.score(user[None, None], item[None], batched)[0]
            target = torch.from_numpy(labels)[batch]
            loss_of = nn.functional.binary_cross_entropy_with_logits
            loss_of(logits, target, reduction="sum").backward()
            optimizer.step()


@pytest.mark.parametrize("model", ["MF", "NCF"])
def test_training_naive(model, simulations, benchmark):
    """A loop over clients in torch, default threads."""
    simulation = simulations[model]
    benchmark.group = f"local training of a cohort, {model}"
    benchmark.name = "naive: torch, client by client"
    rng = np.random.default_rng(0)

    def train() -> None:
        with torch.enable_grad():
            for client in cohort_of(simulation).tolist():
                naive_client(simulation, client, rng)

    benchmark.extra_info["per client"] = len(cohort_of(simulation))
    benchmark.pedantic(train, rounds=1)


@JOBS
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("model", ["MF", "NCF"])
def test_training(model, compiled, n_jobs, simulations, benchmark, monkeypatch):
    """Negatives and shuffling included."""
    simulation = simulations[model]
    benchmark.group = f"local training of a cohort, {model}"
    path = "compiled" if compiled else "torch, batched"
    benchmark.name = f"ours: {path}, {n_jobs} thread{'s'[: n_jobs - 1]}"
    if not compiled:
        network = type(simulation._model)
        monkeypatch.setattr(network, "train_clients", None)
    benchmark.extra_info["per client"] = len(cohort_of(simulation))
    with threads(n_jobs):
        benchmark.pedantic(train_all(simulation), rounds=ROUNDS, warmup_rounds=1)


@JOBS
def test_training_beside_a_busy_process(n_jobs, simulations, benchmark):
    """One core is taken."""
    benchmark.group = "local training of a cohort, MF, one core busy elsewhere"
    benchmark.name = f"ours: compiled, {n_jobs} thread{'s'[: n_jobs - 1]}"
    simulation = simulations["MF"]
    benchmark.extra_info["per client"] = len(cohort_of(simulation))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with threads(n_jobs):
            args = {"rounds": 4 * ROUNDS, "warmup_rounds": 1}
            benchmark.pedantic(train_all(simulation), **args)
    finally:
        busy.kill()


@pytest.fixture(scope="module")
def uplink(simulations) -> tuple[CohortUpdate, list[Budget], list[RoundContext]]:
    """Return the first 100 updates of a cohort."""
    simulation = simulations["MF"]
    simulation._seconds = dict.fromkeys(["local_training"], 0.0)
    with threads(1):
        updates = simulation._train(cohort_of(simulation)[:100]).updates
    own = CohortUpdate(
        updates.clients,
        updates.offsets,
        updates.ids,
        updates.rows.clone(),
        updates.theta,
    )
    table = simulation.server.item_table
    budget = Budget(*table.shape, compression_rate=0.9375)
    contexts = [RoundContext(0, 1, *table.shape, client) for client in range(len(own))]
    return own, [budget] * len(own), contexts


UPLINK = "uplink k-means of (at most) 100 clients, CR 93.75 %"


def test_uplink_naive(uplink, benchmark):
    """scikit-learn's default k-means for each client."""
    benchmark.group, benchmark.name = UPLINK, "naive: scikit-learn, client by client"
    updates, budgets, _ = uplink

    def cluster() -> None:
        for index, budget in enumerate(budgets):
            rows = updates[index].rows.numpy()
            if len(rows) > budget.rows:
                KMeans(budget.rows, random_state=0).fit(rows)

    benchmark.extra_info["per client"] = len(updates)
    benchmark.pedantic(cluster, rounds=1)


@JOBS
def test_uplink(uplink, n_jobs, benchmark):
    """Encoding included."""
    benchmark.group = UPLINK
    benchmark.name = f"ours: {n_jobs} thread{'s'[: n_jobs - 1]}"
    benchmark.extra_info["per client"] = len(uplink[0])
    with threads(n_jobs):
        run = FedRAS().encode_cohort
        benchmark.pedantic(run, args=uplink, rounds=ROUNDS, warmup_rounds=1)


def heavy_tailed(n: int, dim: int) -> np.ndarray:
    """Rows whose norms are log-normal, like those of an aggregate."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, dim), np.float32)
    return rows * rng.lognormal(0, 1.5, (n, 1)).astype(np.float32)


SERVER = "server k-means, 12,454 x 64 into 622 groups, one thread"


def inertia(rows: np.ndarray, centroids: np.ndarray, nearest: np.ndarray) -> float:
    """Return the squared error."""
    return float(((rows - centroids[nearest]) ** 2).sum())


def test_server_naive(benchmark):
    """scikit-learn's default."""
    benchmark.group, benchmark.name = SERVER, "naive: scikit-learn"
    rows = heavy_tailed(12_454, 64)
    model = KMeans(622, random_state=0)
    with threads(1):
        benchmark.pedantic(model.fit, args=(rows,), rounds=1)
    benchmark.extra_info["error"] = float(model.inertia_)


@pytest.mark.parametrize("splits", [False, True])
def test_server(splits, benchmark):
    """C_i = 622 groups for C_e = 778; splits to C_m = 933."""
    benchmark.group = SERVER
    benchmark.name = f"ours{', and splits to 933 groups' if splits else ''}"
    rows = heavy_tailed(12_454, 64)

    def run() -> tuple[np.ndarray, np.ndarray]:
        found = kmeans(rows, 622, np.random.default_rng(0), 10)
        if splits:  # a threshold that is never reached: all of them
            return split_groups(rows, found[1], 2.0, 778, 933).snapshot(933)
        return found

    with threads(1):
        found = benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["error"] = inertia(rows, *found)


@pytest.mark.parametrize(
    ("n", "n_groups", "flat"),
    [(100_000, 3_120, True), (100_000, 3_120, False), (1_000_000, 31_200, False)],
)
def test_nested(n, n_groups, flat, benchmark, monkeypatch):
    """Tables beyond what all centroids can meet."""
    benchmark.group = f"server k-means, {n:,} x 64 into {n_groups:,} groups, one thread"
    benchmark.name = "naive: ours, flat" if flat else "ours, nested"
    if flat:
        monkeypatch.setattr("recbole_fedras.compressor.fedras.kmeans._FLAT", 2**62)
    rows = heavy_tailed(n, 64)

    def run() -> tuple[np.ndarray, np.ndarray]:
        return kmeans(rows, n_groups, np.random.default_rng(0), 10)

    with threads(1):
        found = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["error"] = inertia(rows, *found)


DECOMPOSITION = "SVD of 3,706 x 32, rank 2"


def test_svd_naive(benchmark):
    """The full decomposition of numpy."""
    benchmark.group, benchmark.name = DECOMPOSITION, "naive: numpy, full matrices"
    benchmark.pedantic(np.linalg.svd, args=(heavy_tailed(3_706, 32),), rounds=1)


@pytest.mark.parametrize("shape", [(3_706, 32), (12_454, 64)])
def test_svd(shape, benchmark):
    """Of the paper's largest table, too."""
    benchmark.group = DECOMPOSITION.replace("3,706 x 32", "{:,} x {}".format(*shape))
    benchmark.name = "ours: Gram matrix, encoding included"
    update = row_update(np.arange(shape[0]), heavy_tailed(*shape))
    budget, context = Budget(*shape, 0.9375), RoundContext(0, 1, *shape)
    with threads(1):
        run = SVD().encode
        args = (update, budget, context)
        benchmark.pedantic(run, args=args, rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize("mode", ["uni99", "full"])
@pytest.mark.parametrize("candidates", ["recbole", "fixed"])
def test_evaluation(mode, candidates, benchmark):
    """Metrics included."""
    if mode == "full" and candidates == "recbole":
        pytest.skip("full ranking has no candidates")
    way = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}
    trainer, valid = make_trainer(
        "MF", eval_args={**way, "mode": mode}, eval_candidates=candidates
    )
    benchmark.group = f"evaluation of all users, {mode}, MF"
    benchmark.name = "naive: RecBole's" if candidates == "recbole" else "ours"
    trainer.eval_collector.data_collect(valid)
    run, keys = trainer.evaluate, {"load_best_model": False}
    args = {"rounds": ROUNDS, "warmup_rounds": 1}
    benchmark.pedantic(run, args=(valid,), kwargs=keys, **args)
