"""What a run needs before its first round: data, model, simulation, log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

import torch
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import init_logger, init_seed

from recbole_fedras.config import Config, compat, registry
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.data.dataset import FederatedDataset, client_data
from recbole_fedras.data.digest import digest_of_dataset, digest_of_frame
from recbole_fedras.data.place import origin, require_folder
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.federation.protocol import Ints
from recbole_fedras.federation.rounds import Rounds
from recbole_fedras.federation.settings import Federation
from recbole_fedras.federation.sharded import ShardedSimulation
from recbole_fedras.federation.simulation import Methods, Simulation
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run.console import adapt_output
from recbole_fedras.run.evaluation import fixed_candidates
from recbole_fedras.wire.links import Links
from recbole_fedras.wire.payload import Payload

SimulationKind = TypeVar("SimulationKind", bound=Simulation)
Made = TypeVar("Made", bound=Rounds)
#: Makes rounds of a model, what each client is sent once, and rounds completed before.
MakeRounds = Callable[[FederatedRecommender, Payload | None, int], Made]
#: A class of simulations, or what stands for it.
MakeSimulation = Callable[..., Simulation]


def prepare_data(config: Config) -> tuple[Any, Any, Any]:
    """Load and split the data; see :func:`load_data` and :func:`split_data`."""
    return split_data(config, load_data(config))


def load_data(config: Config) -> Any:
    """Load the data and filter them.

    Raises
    ------
    ConfigError
        For a model that is not federated.
    DataError
        For data that cannot work.
    """
    require_federated(config)
    settings, evaluated = config.run_settings(), config.evaluation_settings()
    init_seed(settings.seed, settings.reproducibility)
    with config.in_use(), compat.errors_as(DataError, f"dataset={settings.dataset!r}"):
        dataset = _load(config)
        if max(evaluated.topk) >= dataset.item_num:
            raise ConfigError(
                f"topk={list(evaluated.topk)} is not allowed; it must be at most the "
                f"number of items, {dataset.item_num - 1}"
            )
        source = origin(settings.data_path) if config.frame is None else "a DataFrame"
        getLogger().info(f"{dataset}\nRead from {source}")
    return dataset


def split_data(
    config: Config, dataset: Any, clients: Ints | None = None
) -> tuple[Any, Any, Any]:
    """Split the data; return RecBole's loaders, evaluation as configured.

    Parameters
    ----------
    config : Config
    dataset : FederatedDataset
        Of :func:`load_data`.
    clients : ndarray of int64, optional
        Those whose rows are kept, by default all.

    Raises
    ------
    DataError
        For data that the split cannot use.
    """
    name, evaluated = config.run_settings().dataset, config.evaluation_settings()
    with config.in_use(), compat.errors_as(DataError, f"dataset={name!r}"):
        loaders = _loaders(config, dataset, clients)
    parts = [loader._dataset for loader in loaders]
    train, *held_out = loaders
    valid, test = (
        fixed_candidates(loader, phase, parts, evaluated)
        for loader, phase in zip(held_out, ("valid", "test"), strict=True)
    )
    return train, valid, test


def _load(config: Config) -> Any:
    """Read the files; never what RecBole once saved under the same name."""
    settings = config.run_settings()
    require_folder(settings.dataset, settings.data_path)
    dataset = FederatedDataset(config)
    label = dataset.label_field
    if label in dataset.inter_feat and label not in (config["val_interval"] or {}):
        raise DataError(
            f"field {label!r} is loaded, which LABEL_FIELD names, but every row is a "
            f"positive: keep liked ones by val_interval={{{label!r}: '[1,1]'}}, or "
            "leave it out of load_col"
        )
    return dataset


def _loaders(config: Config, dataset: Any, clients: Ints | None) -> list[Any]:
    """Split, and return RecBole's loader of each part."""
    parts = dataset.build()
    if clients is not None:
        users = torch.from_numpy(1 + clients)
        for part in parts:
            kept = torch.isin(part.inter_feat[part.uid_field], users)
            part.inter_feat = part.inter_feat[kept]
    samplers = create_samplers(config, dataset, parts)
    return [
        get_dataloader(config, phase)(config, part, sampler, shuffle=phase == "train")
        for phase, part, sampler in zip(
            ("train", "valid", "test"), parts, samplers, strict=True
        )
    ]


def make_simulation(
    config: Config,
    train_data: Any,
    kind: type[SimulationKind],
    methods: Methods | None = None,
    federation: Federation | None = None,
) -> SimulationKind:
    """Set up rounds to be run by hand: no evaluation, no checkpoints, no warm-up.

    Parameters
    ----------
    config : Config
    train_data : AbstractDataLoader
        RecBole's, of :func:`prepare_data`.
    kind : type
        Simulation, or one derived from it.
    methods : Methods, optional
        By default as configured.
    federation : Federation, optional
        Likewise.

    Raises
    ------
    ConfigError
        If a compressor cannot work at its rate, or a cohort is empty.
    """
    return kind(
        config.make_model(train_data._dataset),
        client_data(train_data._dataset),
        methods or config.make_methods(train_data._dataset),
        federation or config.federation(),
        config.local_training(),
        config.run_settings().n_jobs,
    )


def simulate(
    config: Config,
    dataset: Any,
    kind: MakeSimulation,
    model: FederatedRecommender,
    introduction: Payload | None = None,
    version: int = 0,
) -> Simulation:
    """Set up a run's rounds: those of its warm-up, while the model is in one.

    Parameters
    ----------
    config : Config
    dataset : FederatedDataset
        Of a training loader.
    kind : callable
        Simulation, or what takes its parameters and makes one.
    model : FederatedRecommender
    introduction : Payload, optional
        What each client is sent once.
    version : int
        Rounds completed before.
    """
    return kind(
        model,
        client_data(dataset),
        config.make_methods(dataset),
        config.federation(),
        config.local_training(in_warmup(config, model)),
        config.run_settings().n_jobs,
        introduction,
        version,
    )


def simulated(
    config: Config,
    train_data: Any,
    links: Links | None = None,
    kind: MakeSimulation = Simulation,
) -> MakeRounds[Simulation]:
    """Return what makes rounds of a training loader's interactions, on this machine.

    Parameters
    ----------
    config : Config
    train_data : AbstractDataLoader
    links : Links, optional
        To processes that train, in place of this one; then there is one kind.
    kind : callable
        Simulation, or what takes its parameters and makes one.
    """
    if links is not None:
        kind = partial(ShardedSimulation, links)
    return partial(simulate, config, train_data._dataset, kind)


def in_warmup(config: Config, model: FederatedRecommender) -> bool:
    """Whether items are still rows of their own that become an embedding."""
    return config.warmup_rounds > 0 and model.embedding is None


def restore(
    config: Config,
    model: FederatedRecommender,
    make: MakeRounds[Made],
    checkpoint: str | Path,
    digest: str | None,
) -> tuple[Made, dict[str, Any]]:
    """Bring model and rounds back to a checkpoint; return rounds and checkpoint.

    Parameters
    ----------
    config : Config
    model : FederatedRecommender
        Loaded, and a view of what a simulation's clients hold.
    make : callable
        Makes rounds of a model, what each client is sent once, and a version.
    checkpoint : str or Path
    digest : str or None
        Of the dataset, by :func:`data_digest`.

    Raises
    ------
    DataError
        If it is not the one that the run was started with.
    """
    settings = config.run_settings()
    where = f"dataset={settings.dataset!r} at data_path={settings.data_path!r}"
    state = read_checkpoint(checkpoint)
    if state.get("data_digest") not in (None, digest):
        raise DataError(
            f"{str(checkpoint)!r} is of a run on other data: what is in {where} is not "
            "what it was started with; set data_path to that, or give that DataFrame"
        )
    try:
        model.load_state_dict(state["state_dict"])
        rounds = make(model, None, state["epoch"] + 1)
        rounds.load_state_dict(state["simulation"])
    except RuntimeError as error:
        raise DataError(f"{str(checkpoint)!r} does not fit {where}: {error}") from error
    return rounds, state


def data_digest(config: Config) -> str | None:
    """Digest the dataset, which checkpoints are checked against."""
    if config.frame is not None:
        fields = (config["load_col"] or {}).get("inter", "*")
        return digest_of_frame(
            config.frame[
                [name for name in config.frame if fields == "*" or str(name) in fields]
            ]
        )
    settings = config.run_settings()
    return digest_of_dataset(settings.data_path, settings.dataset)


def require_federated(config: Config) -> None:
    """Refuse a model that is not federated.

    Raises
    ------
    ConfigError
    """
    if not issubclass(config.model_class, FederatedRecommender):
        valid = ", ".join(registry.names("model"))
        raise ConfigError(
            f"model={config.model!r} is not a federated model; federated are {valid}, "
            "or a FederatedRecommender of your own named by model_class"
        )


def require_effect(config: Config) -> None:
    """Refuse keys of methods, or of a command, other than those chosen.

    Raises
    ------
    ConfigError
    """
    others = dict(config.unused)
    if config["attacker_class"] is not None:
        others["attacker_class"] = "recbole-fedras leak"
    if config["demands"] is not None:
        others["demands"] = "a node, recbole-fedras deploy shard"
    for key, owners in others.items():
        raise ConfigError(
            f"{key}={config[key]!r} is not allowed: it has no effect in this run: "
            f"it is a key of {owners}"
        )


@contextmanager
def log_of_its_own(config: Config) -> Iterator[None]:
    """Start RecBole's log, and end it with the run, so that the next has its own."""
    root = getLogger()
    before = list(root.handlers)
    adapt_output()
    init_logger(config)
    try:
        yield
    finally:
        for handler in [other for other in root.handlers if other not in before]:
            root.removeHandler(handler)
            handler.close()
