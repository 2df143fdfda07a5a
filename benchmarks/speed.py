"""Every stage against its naive counterpart, side by side in one run.

    pip install -c constraints.txt ".[bench]" && pytest -n 0 benchmarks/speed.py

Uses ML-1M if the environment variable RECBOLE_DATA names a folder that holds its atomic
file (``ml-1m/ml-1m.inter``), else ML-100K. The table of ratios stands at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
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
from recbole_fedras.federation.client.cohort import draw_groups
from recbole_fedras.federation.client.training import (
    LocalModel,
    Participants,
    Trained,
    Workspace,
    train_cohort,
)
from recbole_fedras.federation.server.selection import cohort_size, select_cohort
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.run.setup import prepare_data, simulated
from recbole_fedras.run.trainer import FederatedTrainer

FOLDER = Path(os.environ.get("RECBOLE_DATA", ""))
ML_1M = (FOLDER / "ml-1m" / "ml-1m.inter").is_file()
JOBS = pytest.mark.parametrize("n_jobs", [1, cpu_count()])
ROUNDS = 5

#: A round of a seed: which cohort, which samples.
SEED, ROUND = 2020, 7


def make_trainer(model: str, **keys: Any) -> tuple[FederatedTrainer, Any]:
    """Return a trainer and the loader of its validation part."""
    keys_of_run = {"show_progress": False, "compressor": "none", **keys}
    if ML_1M:
        keys_of_run["data_path"] = str(FOLDER)
    config = Config(model, "ml-1m" if ML_1M else "ml-100k", None, keys_of_run)
    train, valid, _ = prepare_data(config)
    network = config.make_model(train._dataset)
    return FederatedTrainer(config, network, simulated(config, train)), valid


@pytest.fixture(scope="module", autouse=True)
def _no_gradients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("logs"))
    with torch.no_grad():
        yield
    os.chdir(folder)


@pytest.fixture(scope="module")
def trainers() -> dict[str, FederatedTrainer]:
    """Return one trainer per model, some rounds old, so that updates are typical."""
    made = {}
    for model in ("MF", "NCF"):
        made[model], _ = make_trainer(model)
        for _ in range(10):
            made[model].simulation.run_round()
        made[model].model.copy_held()
    return made


def cohort_of(simulation: Simulation) -> np.ndarray:
    """Return some round's cohort."""
    eligible = simulation.data.eligible
    size = cohort_size(len(eligible), simulation.agreement.federation.client_fraction)
    return select_cohort(eligible, size, SEED, ROUND)


def train(
    trainer: FederatedTrainer,
    clients: np.ndarray,
    compiled: bool = True,
    workspace: Workspace | None = None,
) -> Trained:
    """Draw samples and train a cohort, as a round does."""
    model, simulation = trainer.model, trainer.simulation
    shard, training = simulation.shard, simulation.shard.training
    agreement = simulation.agreement
    _, drawn = draw_groups(
        clients, agreement, simulation.data, training, ROUND, whole=False
    )
    kernel = model.train_clients if compiled else None
    return train_cohort(
        LocalModel(model.score, model.theta(), kernel),
        Participants(
            torch.from_numpy(clients),
            shard.user_rows_of(clients),
            None,
            shard.replicas.tables,
            shard.replicas.table_of(clients.tolist()),
        ),
        drawn,
        training,
        workspace=workspace,
    )


def naive_client(
    trainer: FederatedTrainer, client: int, rng: np.random.Generator
) -> None:
    """Train one client as a RecBole user would: embeddings, an optimizer, autograd."""
    model, data = trainer.model, trainer.simulation.data
    training = trainer.simulation.shard.training
    items = nn.Embedding.from_pretrained(model.item_table().clone(), freeze=False)
    user = nn.Parameter(model.user_rows()[client].clone())
    theta = {name: nn.Parameter(value.clone()) for name, value in model.theta().items()}
    optimizer = torch.optim.SGD(
        [
            {"params": items.parameters(), "lr": training.learning_rate},
            {"params": [user], "lr": training.user_learning_rate},
            {"params": list(theta.values()), "lr": training.theta_learning_rate / 256},
        ]
    )
    positives = data.of(client)
    for _ in range(training.local_epochs):
        left = np.setdiff1d(np.arange(data.n_items), positives)
        negatives = rng.choice(left, training.n_negatives * len(positives))
        rows = np.concatenate([positives, negatives])
        labels = np.zeros(len(rows), np.float32)
        labels[: len(positives)] = 1
        order = torch.from_numpy(rng.permutation(len(rows)))
        for batch in order.split(training.batch_size):
            optimizer.zero_grad()
            item = items(torch.from_numpy(rows)[batch])
            batched = {name: value[None] for name, value in theta.items()}
            logits = model.score(user[None, None], item[None], batched)[0]
            target = torch.from_numpy(labels)[batch]
            loss_of = nn.functional.binary_cross_entropy_with_logits
            loss_of(logits, target, reduction="sum").backward()
            optimizer.step()


@pytest.mark.parametrize("model", ["MF", "NCF"])
def test_training_naive(model, trainers, benchmark):
    """A loop over clients in torch, default threads."""
    trainer = trainers[model]
    clients, rng = cohort_of(trainer.simulation), np.random.default_rng(0)
    benchmark.group = f"local training of a cohort, {model}"
    benchmark.name = "naive: torch, client by client"

    def train_all() -> None:
        with torch.enable_grad():
            for client in clients.tolist():
                naive_client(trainer, client, rng)

    benchmark.extra_info["per client"] = len(clients)
    benchmark.pedantic(train_all, rounds=1)


@JOBS
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("model", ["MF", "NCF"])
def test_training(model, compiled, n_jobs, trainers, benchmark):
    """Negatives and shuffling included."""
    clients = cohort_of(trainers[model].simulation)
    benchmark.group = f"local training of a cohort, {model}"
    path = "compiled" if compiled else "torch, batched"
    benchmark.name = f"ours: {path}, {n_jobs} thread{'s'[: n_jobs - 1]}"
    benchmark.extra_info["per client"] = len(clients)
    args = (trainers[model], clients, compiled, Workspace())
    with threads(n_jobs):
        benchmark.pedantic(train, args=args, rounds=ROUNDS, warmup_rounds=1)


@JOBS
def test_training_beside_a_busy_process(n_jobs, trainers, benchmark):
    """One core is taken."""
    clients = cohort_of(trainers["MF"].simulation)
    benchmark.group = "local training of a cohort, MF, one core busy elsewhere"
    benchmark.name = f"ours: compiled, {n_jobs} thread{'s'[: n_jobs - 1]}"
    benchmark.extra_info["per client"] = len(clients)
    args = (trainers["MF"], clients, True, Workspace())
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with threads(n_jobs):
            benchmark.pedantic(train, args=args, rounds=4 * ROUNDS, warmup_rounds=1)
    finally:
        busy.kill()


@pytest.fixture(scope="module")
def uplink(trainers) -> tuple[CohortUpdate, list[Budget], list[RoundContext]]:
    """Return the first 100 updates of a cohort."""
    simulation = trainers["MF"].simulation
    with threads(1):
        updates = train(trainers["MF"], cohort_of(simulation)[:100]).updates
    table = simulation.server.parameters.item_table
    budget = Budget(*table.shape, compression_rate=0.9375)
    contexts = [
        RoundContext(0, 1, *table.shape, client) for client in range(len(updates))
    ]
    return updates, [budget] * len(updates), contexts


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
        found = kmeans(rows, 622, 10)
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
def test_nested(n, n_groups, flat, benchmark):
    """Tables beyond what all centroids can meet."""
    benchmark.group = f"server k-means, {n:,} x 64 into {n_groups:,} groups, one thread"
    benchmark.name = "naive: ours, flat" if flat else "ours, nested"
    rows, most = heavy_tailed(n, 64), {"flat": 2**62} if flat else {}

    def run() -> tuple[np.ndarray, np.ndarray]:
        return kmeans(rows, n_groups, 10, **most)

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
