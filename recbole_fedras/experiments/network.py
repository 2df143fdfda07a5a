"""What exhibits keep of a network that is trained by federated averaging."""

from __future__ import annotations

import torch

from recbole_fedras.beyond.averaging import Averaging, accuracy, class_ranks, train
from recbole_fedras.beyond.datasets import load, require_data
from recbole_fedras.beyond.networks import make_network, require_network
from recbole_fedras.config import Config, registry
from recbole_fedras.config.checkpoint import plain
from recbole_fedras.config.given_keys import LOCAL, SHOWN
from recbole_fedras.errors import ConfigError
from recbole_fedras.experiments.identity import (
    Identity,
    Keys,
    Measure,
    Outcome,
    Resolver,
)

#: Keys whose values recommenders do not have.
_OF_NETWORKS = ("dataset", "model")

#: Keys of a run besides its compressor's.
_KEYS = (
    *_OF_NETWORKS, "compressor", "compression_rate", "epochs", "client_fraction",
    "learning_rate", "train_batch_size", "seed",
)  # fmt: skip


class NetworkResolver(Resolver):
    """Finds the identities of runs that are no configurations of RecBole's."""

    def _resolve(self, cell: Keys, given: Keys, measure: Measure) -> Identity:
        return Identity(given, _resolved(given), measure.__name__, {}, None)

    def require(self, cell: Keys) -> None:
        """Refuse what is unknown, and data whose package is not installed."""
        require_network(cell["model"])
        require_data(cell["dataset"])


def train_network(cell: Keys) -> Outcome:
    """Train a network by federated averaging and test it.

    The keys are those of recommenders' runs: ``epochs`` are rounds, ``client_fraction``
    of the clients, one at least, take part in each.

    Returns
    -------
    dict
        As of ``train_and_test``. ``ranks`` has the place of each tested example's class
        among all classes, so that ``hit@1`` is accuracy, and what is said of users is
        said of examples. ``best_valid_score`` is the accuracy at the end.
    """
    torch.set_num_threads(1)
    given = {key: value for key, value in cell.items() if key not in LOCAL | SHOWN}
    keys = _resolved(given)
    data = load(keys["dataset"], keys["seed"])
    n_classes = 1 + int(data.test.classes.max())
    network = make_network(
        keys["model"], data.test.inputs, n_classes, seed=keys["seed"]
    )
    how = _averaging(keys, len(data.clients))
    sent = train(network, data.clients, how)
    dense = 4 * sum(value.numel() for value in network.parameters())
    dense *= how.rounds * (how.cohort + len(data.clients))
    ranks = class_ranks(network, data.test)
    result = {
        "test_result": {"hit@1": accuracy(network, data.test)},
        "best_valid_score": accuracy(network, data.valid),
        "valid_score_bigger": True,
        "communication": {
            "uplink_bytes": sent.uplink,
            "downlink_bytes": sent.downlink,
            "catch_up_bytes": 0,  # every client takes every downlink
            "dense_bytes": dense,
            "wire_compression_rate": 1 - (sent.uplink + sent.downlink) / dense,
        },
    }
    return {"result": result, "ranks": ranks.tolist()}


def _averaging(keys: Keys, n_clients: int) -> Averaging:
    compressor, _ = _config(keys).make_compressors()
    return Averaging(
        compressor,
        keys["compression_rate"],
        keys["epochs"],
        max(1, round(keys["client_fraction"] * n_clients)),
        keys["learning_rate"],
        keys["train_batch_size"],
        keys["seed"],
    )


def _resolved(given: Keys) -> Keys:
    """Return every key of a run and its value.

    Raises
    ------
    ConfigError
        For a key that it does not have, or a value that is not allowed.
    """
    config = _config(given)
    _, compressor = config.compressors["uplink"]
    keys = [*_KEYS, *registry.hyper_parameters(compressor)]
    for key in given.keys() - set(keys):
        raise ConfigError(
            f"{key}={given[key]!r} is no key of a network's run, which has "
            f"{', '.join(keys)}"
        )
    return {key: plain(config[key]) for key in keys} | given


def _config(keys: Keys) -> Config:
    """Return what a recommender's configuration makes of the keys that both have."""
    shared = {key: value for key, value in keys.items() if key not in _OF_NETWORKS}
    return Config(config_dict=shared)
