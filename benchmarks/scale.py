"""A round of FedRAS with 100,000 clients, 100,000 items and 10 million interactions.

    python benchmarks/scale.py [--clients=N] [--items=N] [--interactions=N] [--rounds=N]
                               [--evaluated=N] [--replica=personal] [--key=value ...]

Interactions are synthetic, power laws over clients and items. 1 % of the clients take
part in a round; compression rate 0.9688; other keys as configured. With ``personal`` or
``stale``, replicas are mapped to a file: the peak counts pages of it that memory had
room for.
"""

import argparse
import resource
import sys
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from tabulate import tabulate
from tqdm import trange

from recbole_fedras.config import Config
from recbole_fedras.data.clients import ClientData
from recbole_fedras.federation.simulation import PHASES, Simulation
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run.evaluation import FixedCandidates, candidate_scores
from recbole_fedras.run.negatives import DrawnNegatives

KEYS = {"client_fraction": 0.01, "compression_rate": 0.9688}

#: Interactions that are sampled at a time.
CHUNK = 10_000_000


class Catalogue(NamedTuple):
    """How many users and items there are, [PAD] included: all that a model asks."""

    user_num: int
    item_num: int

    def num(self, field: str) -> int:
        """Return how many values RecBole's field of users or items has."""
        return {"user_id": self.user_num, "item_id": self.item_num}[field]


def power_law(n_clients: int, n_items: int, n_interactions: int) -> ClientData:
    """Sample distinct interactions, clients and items by power laws."""
    rng = np.random.default_rng(0)
    activity = (1 + np.arange(n_clients)) ** -0.6
    counts = 5 + rng.multinomial(
        n_interactions - 5 * n_clients, activity / activity.sum()
    )
    popularity = np.cumsum((1 + np.arange(n_items)) ** -0.8)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    ranks = np.empty(n_interactions, np.int32)
    for part in np.array_split(ranks, 1 + n_interactions // CHUNK):  # views
        points = rng.random(len(part)) * popularity[-1]
        part[:] = np.searchsorted(popularity, points)
    item_of_rank, items = rng.permutation(n_items), []
    for clients in np.array_split(np.arange(n_clients), 1 + n_interactions // CHUNK):
        users = np.repeat(clients, counts[clients])
        chosen = item_of_rank[ranks[bounds[clients[0]] : bounds[clients[-1] + 1]]]
        users, distinct = divmod(np.unique(users * n_items + chosen), n_items)
        counts[clients] = np.bincount(users, minlength=clients[-1] + 1)[clients[0] :]
        items.append(distinct)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return ClientData(n_clients, n_items, offsets, np.concatenate(items))


def simulate(
    argv: list[str], clients: ClientData
) -> tuple[Simulation, FederatedRecommender]:
    """Set rounds up as configured, over clients that no file holds."""
    config = Config(config_dict=KEYS, argv=argv)
    model = config.make_model(Catalogue(clients.n_clients + 1, clients.n_items + 1))
    simulation = Simulation(
        model,
        clients,
        config.make_methods(),
        config.federation(),
        config.local_training(),
        config.run_settings().n_jobs,
    )
    return simulation, model


class Interacted(NamedTuple):
    """All items of each user, by RecBole's ids, made when they are asked for."""

    clients: ClientData

    def __getitem__(self, user: int) -> np.ndarray:
        return 1 + self.clients.of(user - 1)


def evaluate(simulation: Simulation, model: FederatedRecommender, n: int) -> str:
    """Rank an item of each of n users among 99 drawn; say what it took."""
    clients = simulation.data
    users = np.linspace(0, clients.n_clients - 1, n).astype(np.int64)
    pairs = {"user_id": 1 + users, "item_id": 1 + clients.items[clients.offsets[users]]}
    held_out = SimpleNamespace(
        uid_field="user_id",
        iid_field="item_id",
        item_num=1 + clients.n_items,
        inter_feat={field: torch.from_numpy(ids) for field, ids in pairs.items()},
    )
    start = process_time()
    negatives = DrawnNegatives(held_out, Interacted(clients), 99)
    loader = FixedCandidates(held_out, negatives, 2020, "valid", 2**17)
    drawn = process_time()
    model.copy_held()
    with torch.no_grad():
        hits = sum(
            int((candidate_scores(model, batch).argsort(1)[:, -10:] == place).sum())
            for batch, _, _, places in loader
            for place in [places[:, None]]
        )
    taken = process_time() - drawn
    return (
        f"{n:,} users: candidates drawn once in {drawn - start:.1f} s of CPU, ranked "
        f"in {taken:.1f} s; hit@10 {hits / n:.4f}"
    )


def main(argv: list[str]) -> None:
    """Run some rounds and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name, default in (
        ("clients", 100_000),
        ("items", 100_000),
        ("interactions", 10_000_000),
        ("rounds", 5),
        ("evaluated", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args, rest = parser.parse_known_args(argv)

    clients = power_law(args.clients, args.items, args.interactions)
    simulation, model = simulate(rest, clients)
    print(f"{len(clients.items):,} distinct interactions")
    rows = []
    for round in trange(args.rounds, unit="round"):
        start, cpu = perf_counter(), process_time()
        report = simulation.run_round()
        seconds = {"seconds": perf_counter() - start, "of CPU": process_time() - cpu}
        seconds |= {phase: report.seconds[phase] for phase in PHASES}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append(
            {"round": round, "clients": report.n_clients, **seconds, "peak GB": peak}
        )
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))
    if args.evaluated:
        print(evaluate(simulation, model, args.evaluated))


if __name__ == "__main__":
    main(sys.argv[1:])
