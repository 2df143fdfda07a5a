"""A round of FedRAS with 100,000 clients, 100,000 items and 10 million interactions.

    python benchmarks/scale.py [--clients=N] [--items=N] [--interactions=N] [--rounds=N]
                               [--replica=personal] [--key=value ...]

Interactions are synthetic, power laws over clients and items. 1 % of the clients take
part in a round; compression rate 0.9688; other keys as configured. With ``personal`` or
``stale``, replicas are mapped to a file: the peak counts pages of it that memory had
room for.
"""

import argparse
import resource
import sys
from time import perf_counter
from typing import NamedTuple

import numpy as np
from tabulate import tabulate
from tqdm import trange

from recbole_fedras.config import Config
from recbole_fedras.data.clients import ClientData
from recbole_fedras.federation.simulation import PHASES, Simulation

KEYS = {"client_fraction": 0.01, "compression_rate": 0.9688}


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
    users = np.repeat(np.arange(n_clients), counts)
    points = rng.random(len(users)) * popularity[-1]
    items = rng.permutation(n_items)[np.searchsorted(popularity, points)]
    pairs = np.unique(users * n_items + items)
    return ClientData.from_pairs(*divmod(pairs, n_items), n_clients, n_items)


def simulate(argv: list[str], clients: ClientData) -> Simulation:
    """Set rounds up as configured, over clients that no file holds."""
    config = Config(config_dict=KEYS, argv=argv)
    catalogue = Catalogue(clients.n_clients + 1, clients.n_items + 1)
    return Simulation(
        config.make_model(catalogue),
        clients,
        config.make_methods(),
        config.federation(),
        config.local_training(),
        config.run_settings().n_jobs,
    )


def main(argv: list[str]) -> None:
    """Run some rounds and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name, default in (
        ("clients", 100_000),
        ("items", 100_000),
        ("interactions", 10_000_000),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args, rest = parser.parse_known_args(argv)

    clients = power_law(args.clients, args.items, args.interactions)
    simulation = simulate(rest, clients)
    print(f"{len(clients.items):,} distinct interactions")
    rows = []
    for round in trange(args.rounds, unit="round"):
        start = perf_counter()
        report = simulation.run_round()
        seconds = {"seconds": perf_counter() - start}
        seconds |= {phase: report.seconds[phase] for phase in PHASES}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows.append(
            {"round": round, "clients": report.n_clients, **seconds, "peak GB": peak}
        )
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main(sys.argv[1:])
