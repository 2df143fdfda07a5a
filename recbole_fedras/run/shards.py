"""Processes of this machine that each hold a shard of a run's clients."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from joblib import cpu_count

from recbole_fedras.config import Config
from recbole_fedras.data.dataset import client_data
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.federation.client.shard import Shard
from recbole_fedras.federation.protocol import Ints, block_of
from recbole_fedras.federation.sharded import SimulatedNode, share_out
from recbole_fedras.federation.simulation import agree, make_shard
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.run import ranks
from recbole_fedras.run.ranks import RankLinks
from recbole_fedras.run.setup import in_warmup, load_data, split_data
from recbole_fedras.run.sums import evaluate
from recbole_fedras.wire.links import Links, PipeLinks, serve


@contextmanager
def processes(config: Config) -> Iterator[Links | None]:
    """Have ways to the processes of a run, and end them with it; None: it has none.

    They are those that ``torchrun`` has started, or ``n_shards`` of this machine. Each
    reads the data for itself, and keeps the rows of its own users.
    """
    n_shards = config.run_settings().n_shards
    if ranks.world() > 1:
        with ranks.joined(), _closed(RankLinks(_node(config, 0, ranks.world()))) as way:
            yield way
    elif n_shards > 1:
        with _started(config, n_shards) as links, _closed(links):
            yield links
    else:
        yield None


def be_a_rank(config: Config) -> None:
    """Hold the shard of a rank other than 0, until rank 0 has ended."""
    with ranks.joined():
        _hold(config, ranks.rank(), ranks.world(), ranks.serve)


@contextmanager
def _closed(links: Links) -> Iterator[Links]:
    try:
        yield links
    finally:
        links.close()


@contextmanager
def _started(config: Config, n_shards: int) -> Iterator[Links]:
    """Start processes, each behind a pipe."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    started = []
    for shard in range(n_shards):
        here, there = context.Pipe()
        arguments = (there, config.frame, config.resolved, shard, n_shards)
        process = context.Process(target=_be_a_process, args=arguments, daemon=True)
        process.start()
        there.close()  # so that a process that dies is noticed
        pipes[str(shard)] = here
        started.append(process)
    try:
        yield PipeLinks(pipes)
    finally:
        for process in started:
            process.join(5)
            process.terminate()


def _be_a_process(
    pipe: Connection, frame: Any, keys: dict[str, Any], shard: int, n_shards: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run ends its round, and then us
    config = Config(dataset=frame, config_dict=keys)
    _hold(config, shard, n_shards, partial(serve, pipe=pipe))


def _hold(
    config: Config,
    shard: int,
    n_shards: int,
    serve: Callable[[Callable[[bytes], Iterable[bytes]]], None],
) -> None:
    """Hold a shard, and serve it."""
    n_jobs = config.run_settings().n_jobs
    if n_jobs == -1:
        n_jobs = max(1, cpu_count() // n_shards)
    with config.in_use(), torch.no_grad(), threads(n_jobs):
        try:
            handle = _node(config, shard, n_shards)
        except (ConfigError, DataError):
            return  # the run finds the same, and says so
        serve(handle)


def _node(
    config: Config, shard: int, n_shards: int
) -> Callable[[bytes], Iterable[bytes]]:
    """Load a shard; return what answers for it."""
    loaded = Loaded.part(config, shard, n_shards)
    first = loaded.begin(0, loaded.model.embedding is not None)
    return SimulatedNode(first, loaded.evaluate, loaded.begin).frames


class Loaded:
    """What a process has loaded: its users' rows, and the model that scores them.

    Parameters
    ----------
    config : Config
    dataset : FederatedDataset
        Users and items have the numbers that all shards agree on.
    clients : ndarray of int64
        Those of the shard.
    """

    def __init__(self, config: Config, dataset: Any, clients: Ints) -> None:
        self._config, self._clients = config, clients
        train, valid, test = split_data(config, dataset, clients)
        self._dataset, self.data = train._dataset, client_data(train._dataset)
        self._held_out = {"valid": valid, "test": test}
        self.model = config.make_model(train._dataset)

    @classmethod
    def part(cls, config: Config, shard: int, n_shards: int) -> Loaded:
        """Load the data of a simulation, and keep a shard's part of it."""
        dataset = load_data(config)
        block = block_of(config.federation().client_fraction)
        parts = share_out(dataset.user_num - 1, block, n_shards)
        return cls(config, dataset, parts[shard])

    def begin(self, version: int, embedding: bool, tiers: Ints | None = None) -> Shard:
        """Make the shard anew, with items of rows or of an embedding.

        Bandwidth tiers are given where they do not follow from the seed.
        """
        config, model, data = self._config, self.model, self.data
        model.begin_or_not(embedding)
        methods = config.make_methods(self._dataset)
        federation = config.federation()
        agreement = agree(model, federation, data.n_clients, methods, version, tiers)
        training = config.local_training(in_warmup(config, model))
        return make_shard(agreement, model, data, methods, training, self._clients)

    def evaluate(self, phase: str) -> dict[str, Any]:
        """Evaluate the shard's users.

        Returns
        -------
        dict
            ``n_users``, ``sums`` by metric; and lists ``users`` and ``ranks``, which go
            no further than to whoever may know them.
        """
        with self._config.in_use():
            found = evaluate(self._config, self.model, self._held_out[phase])
        return found | {key: found[key].tolist() for key in ("users", "ranks")}
