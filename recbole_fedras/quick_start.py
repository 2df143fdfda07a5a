"""The whole run in one call: RecBole's ``run_recbole``, federated."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from typing import Any, TypeVar

import numpy as np
import recbole.data.dataset
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_logger, init_seed

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import Config, compat, registry
from recbole_fedras.config.checkpoint import plain
from recbole_fedras.data.dataset import FederatedDataset, client_data
from recbole_fedras.federation.server.selection import cohort_size
from recbole_fedras.federation.settings import Federation
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run.evaluation import fixed_candidates
from recbole_fedras.run.report import (
    RunFolder,
    communication,
    result_table,
    seconds_by_phase,
)
from recbole_fedras.run.trainer import FederatedTrainer
from recbole_fedras.wire.ledger import DIRECTIONS

Rounds = TypeVar("Rounds", bound=Simulation)

compat.let_hyperopt_draw()


def run_recbole_fedras(
    model: str | type[FederatedRecommender] | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
    argv: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a model federatedly on a dataset and evaluate it, as configured.

    Parameters
    ----------
    model : str or class, optional
        MF, NCF or another :class:`FederatedRecommender`; default as configured.
    dataset : str, optional
        Name of a RecBole dataset; default as configured.
    config_file_list : sequence of str, optional
        YAML files, later over earlier.
    config_dict : dict, optional
        Values over those of the files.
    saved : bool
        Whether to write checkpoints; without them the test uses the last round.
    argv : sequence of str
        ``--key=value`` arguments over everything else.

    Returns
    -------
    dict
        RecBole's ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``
        and ``test_result``, and all that ``result.json`` holds: ``model``, ``dataset``,
        ``compressor``, ``seed``, ``rounds``, ``communication`` (bytes), ``seconds``;
        and ``run_folder``.

    Raises
    ------
    ValueError, FileNotFoundError
        For configurations and data that cannot work, before any training.
    NonFiniteError
        If training diverges; the last good state is kept.
    """
    config = Config(model, dataset, config_file_list, config_dict, argv)
    _require_federated(config)
    with _log(config):
        return _run(config, saved)


def objective_function(
    config_dict: dict[str, Any] | None = None,
    config_file_list: Sequence[str] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Run once for RecBole's ``HyperTuning``, as its ``run_hyper.py`` does.

    Parameters
    ----------
    config_dict : dict, optional
        The trial's parameters; any key of the configuration.
    config_file_list : sequence of str, optional
        What all trials have in common.
    saved : bool
        As for :func:`run_recbole_fedras`.

    Returns
    -------
    dict
        As :func:`run_recbole_fedras`.
    """
    trial = {"show_progress": False} | {
        key: plain(value) for key, value in (config_dict or {}).items()
    }
    return run_recbole_fedras(
        config_file_list=config_file_list, config_dict=trial, saved=saved
    )


def _run(config: Config, saved: bool) -> dict[str, Any]:
    train_data, valid_data, test_data = prepare_data(config)
    init_seed(config["seed"], config["reproducibility"])
    network = config.model_class(config, train_data._dataset).to(config["device"])
    trainer = FederatedTrainer(config, network, train_data)

    name = f"{config['model']}-{config.method}-{config['dataset']}"
    folder = RunFolder(config["checkpoint_dir"], name)
    folder.write_config(config.resolved)
    trainer.write_to(folder)
    if config["resume"]:
        trainer.resume_checkpoint(config["resume"])

    show_progress = config["show_progress"]
    best_valid_score, best_valid_result = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=show_progress
    )
    start = time.perf_counter()
    test_result = trainer.evaluate(test_data, load_best_model=saved)
    test_seconds = time.perf_counter() - start

    folder.write_rounds(trainer.rows)
    ranks = trainer.eval_collector.ranks
    if ranks is not None:
        held_out = test_data._dataset  # loaders take users by increasing id
        users = np.unique(held_out.inter_feat[held_out.uid_field].numpy())
        folder.write_ranks(held_out.id2token(held_out.uid_field, users), ranks)
    seconds = seconds_by_phase(trainer.rows)
    seconds["evaluation"] += test_seconds
    seconds["total"] += test_seconds
    result: dict[str, Any] = {
        "model": config["model"],
        "dataset": config["dataset"],
        "item_embedding": config["item_embedding"],
        "compressor": config.method,
        "compression_rate": list(trainer.simulation.federation.compression_rates),
        "budget": config["budget"],
        "replica": config["replica"],
        "seed": config["seed"],
        "rounds": trainer.simulation.round,
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
        "test_result": test_result,
        "communication": cost(config, trainer.simulation),
        "seconds": seconds,
        "run_folder": str(folder.path),
    }
    result = {key: plain(value) for key, value in result.items()}
    folder.write_result(result)
    print(result_table(result))
    print(f"Everything is in {folder.path}")
    return result


def cost(config: Config, simulation: Simulation) -> dict[str, Any]:
    """Return a run's :func:`communication`, beside that of the run without a cut."""
    asked = config.resolved
    cohort = cohort_size(len(simulation.clients.eligible), asked["client_fraction"])
    rounds = simulation.round * asked["epochs"] / config["epochs"]
    embedding = simulation.embedding
    n_theta = len(simulation.server.theta)
    if embedding is not None:
        n_theta -= embedding.n_theta  # they stand in for items
    return communication(
        simulation.ledger.totals,
        table_bytes=4 * simulation.clients.n_items * asked["embedding_size"],
        theta_bytes=4 * n_theta,
        participations=rounds * cohort,
        mb_per_s={key: config[f"{key}_mb_per_s"] for key in DIRECTIONS},
    )


def prepare_data(config: Config) -> tuple[Any, Any, Any]:
    """Load and split the data; return RecBole's loaders, evaluation as configured.

    Raises
    ------
    ValueError
        For a model that is not federated, and for data that cannot work.
    """
    _require_federated(config)
    init_seed(config["seed"], config["reproducibility"])
    # RecBole looks a dataset class up by the model's name: its own way to extend it.
    setattr(recbole.data.dataset, f"{config['model']}Dataset", FederatedDataset)
    dataset = create_dataset(config)
    dataset.config = config  # one that RecBole had saved splits as it once did
    if max(config["topk"]) >= dataset.item_num:
        raise ValueError(
            f"topk={config['topk']} is not allowed; it must be at most the number of "
            f"items, {dataset.item_num - 1}"
        )
    getLogger().info(dataset)
    loaders = data_preparation(config, dataset)
    parts = [loader._dataset for loader in loaders]
    train, *evaluation = loaders
    valid, test = (
        fixed_candidates(loader, phase, parts, config)
        for loader, phase in zip(evaluation, ("valid", "test"), strict=True)
    )
    return train, valid, test


def make_simulation(
    config: Config,
    train_data: Any,
    kind: type[Rounds],
    compressors: tuple[Compressor, Compressor] | None = None,
    federation: Federation | None = None,
) -> Rounds:
    """Set up rounds to be run by hand: no evaluation, no checkpoints, no warm-up.

    Parameters
    ----------
    config : Config
    train_data : AbstractDataLoader
        RecBole's, of :func:`prepare_data`.
    kind : type
        Simulation, or one derived from it.
    compressors : tuple of Compressor, optional
        Of uplink and downlink; by default as configured.
    federation : Federation, optional
        Likewise.

    Raises
    ------
    ValueError
        If a compressor cannot work at its rate, or a cohort is empty.
    """
    return kind(
        config.model_class(config, train_data._dataset),
        client_data(train_data._dataset),
        *(compressors or config.make_compressors()),
        federation or config.federation(),
        config.local_training(),
        config["n_jobs"],
    )


def _require_federated(config: Config) -> None:
    if not issubclass(config.model_class, FederatedRecommender):
        valid = ", ".join(registry.names("model"))
        raise ValueError(
            f"model={config.model!r} is not a federated model; federated are {valid}, "
            "or a FederatedRecommender of your own named by model_class"
        )


@contextmanager
def _log(config: Config) -> Iterator[None]:
    """Start RecBole's log, and end it with the run, so that the next has its own."""
    root = getLogger()
    before = list(root.handlers)
    init_logger(config)
    try:
        yield
    finally:
        for handler in [other for other in root.handlers if other not in before]:
            root.removeHandler(handler)
            handler.close()
