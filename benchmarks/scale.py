"""A round of FedRAS with 100,000 clients, 100,000 items and 10 million interactions.

    python benchmarks/scale.py [--clients=N] [--items=N] [--interactions=N] [--rounds=N]
                               [--replica=personal]

Interactions are synthetic, power laws over clients and items. 1 % of the clients take
part in a round; compression rate 0.9688. With ``personal`` or ``stale``, replicas are
mapped to a file: the peak counts pages of it that memory had room for.
"""

import argparse
import resource
import sys
from time import perf_counter

import numpy as np
import torch
from tabulate import tabulate
from tqdm import trange

from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.data.clients import ClientData
from recbole_fedras.federation.settings import REPLICAS, Federation, LocalTraining
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.model import MF
from recbole_fedras.numeric.memory import mapped_zeros
from recbole_fedras.numeric.rng import Stream, generator


class Embeddings:
    """Embeddings without a RecBole dataset: what a simulation needs of a model."""

    score = MF.score
    train_clients = staticmethod(MF.train_clients)

    def __init__(self, n_clients: int, n_items: int, dim: int) -> None:
        rng = generator(0, Stream.INITIALISATION)
        rows = rng.standard_normal((n_clients + n_items, dim), np.float32) * 0.01
        tensor = torch.from_numpy(rows)
        self._replica = torch.zeros(n_clients, dtype=torch.int64)
        self._users, self._items = tensor[:n_clients], tensor[None, n_clients:]

    networks = embedding = None

    def hold_replicas(self, n_replicas: int, mapped: bool = False) -> None:
        """Make room for tables, of which the first is as it was."""
        if n_replicas > 1:
            zeros = mapped_zeros if mapped else torch.zeros
            tables = zeros(n_replicas, *self._items.shape[1:])
            tables[0] = self._items[0]
            self._items = tables

    def client_rows(self) -> torch.Tensor:
        """Return the private rows, shape (n_clients, dim)."""
        return self._users

    def replica_of_client(self) -> torch.Tensor:
        """Return which table each client holds, shape (n_clients,)."""
        return self._replica

    def replicas(self) -> torch.Tensor:
        """Return the item tables, shape (n_replicas, n_items, dim)."""
        return self._items

    def theta(self) -> dict[str, torch.Tensor]:
        """Return no network."""
        return {}


def power_law(n_clients: int, n_items: int, n_interactions: int) -> ClientData:
    """Sample distinct interactions, clients and items by power laws."""
    rng = np.random.default_rng(0)
    activity = (1 + np.arange(n_clients)) ** -0.6
    counts = 5 + rng.multinomial(
        n_interactions - 5 * n_clients, activity / activity.sum()
    )
    popularity = np.cumsum((1 + np.arange(n_items)) ** -0.8)
    users = np.repeat(np.arange(n_clients), counts)
    points = rng.random(len(users)) * popularity[-1]
    items = rng.permutation(n_items)[np.searchsorted(popularity, points)]
    pairs = np.unique(users * n_items + items)
    return ClientData.from_pairs(*divmod(pairs, n_items), n_clients, n_items)


def main(argv: list[str]) -> None:
    """Run some rounds and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("clients", 100_000),
        ("items", 100_000),
        ("interactions", 10_000_000),
        ("dim", 32),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--replica", default="broadcast", choices=REPLICAS)
    args = parser.parse_args(argv)

    clients = power_law(args.clients, args.items, args.interactions)
    simulation = Simulation(
        Embeddings(args.clients, args.items, args.dim),
        clients,
        FedRAS(),
        FedRAS(),
        Federation(1, 0.01, (0.9688,), "inverse_frequency", args.replica),
        LocalTraining(0.05, 0.05, 0.05, local_epochs=2, batch_size=256, n_negatives=4),
        n_jobs=-1,
    )
    print(f"{len(clients.items):,} distinct interactions")
    rows = []
    with torch.no_grad():
        for round in trange(args.rounds, unit="round"):
            start = perf_counter()
            report = simulation.run_round()
            rows.append(
                {
                    "round": round,
                    "clients": report.n_clients,
                    "seconds": perf_counter() - start,
                    **report.seconds,
                    "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    / 2**20,
                }
            )
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main(sys.argv[1:])
