"""A run from its first round to its result, simulated or deployed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from recbole.utils import init_seed

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import plain
from recbole_fedras.data.dataset import client_data
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.run.console import only_in_files
from recbole_fedras.run.cost import cost
from recbole_fedras.run.exposure import exposure
from recbole_fedras.run.groups import hits_by_group
from recbole_fedras.run.privacy import privacy
from recbole_fedras.run.progress import compiling
from recbole_fedras.run.provenance import commit, versions
from recbole_fedras.run.report import (
    RunFolder,
    result_table,
    run_name,
    seconds_by_phase,
)
from recbole_fedras.run.setup import (
    MakeSimulation,
    data_digest,
    load_data,
    simulated,
    split_data,
)
from recbole_fedras.run.stages import stage
from recbole_fedras.run.trainer import FederatedTrainer
from recbole_fedras.wire.links import Links


def run(
    config: Config,
    saved: bool = True,
    links: Links | None = None,
    kind: MakeSimulation = Simulation,
) -> dict[str, Any]:
    """Run as configured, on this machine; the log is the caller's.

    Parameters
    ----------
    config : Config
    saved : bool
        Whether to write checkpoints.
    links : Links, optional
        To processes that train, in place of this one.
    kind : callable
        Without these, Simulation or what takes its parameters and makes one.

    Returns
    -------
    dict
        What ``result.json`` holds.
    """
    settings = config.run_settings()
    show = settings.show_progress
    with stage(f"reading {settings.dataset}", show):
        dataset = load_data(config)
    with stage("setting up clients", show, compiling):
        data = split_data(config, dataset)
        init_seed(settings.seed, settings.reproducibility)
        network = config.make_model(data[0]._dataset)
        make = simulated(config, data[0], links, kind)
        trainer = FederatedTrainer(config, network, make, data_digest(config))
        folder = begin(trainer)
    result = train_and_test(trainer, folder, data, saved)
    _write_ranks(folder, trainer, data[-1]._dataset)
    return result


def _write_ranks(folder: RunFolder, trainer: FederatedTrainer, held_out: Any) -> None:
    ranks = trainer.eval_collector.ranks
    if ranks is None:
        return
    # Loaders take users by increasing id.
    users = np.unique(held_out.inter_feat[held_out.uid_field].numpy())
    k = max(trainer.config.evaluation_settings().topk)
    folder.write_ranks(held_out.id2token(held_out.uid_field, users), ranks, k)


def begin(trainer: FederatedTrainer) -> RunFolder:
    """Make a run's folder; take up the run that is to be resumed, if any."""
    config = trainer.config
    settings = config.run_settings()
    called = f"{settings.model}-{config.method}-{settings.dataset}"
    folder = RunFolder(settings.checkpoint_dir, run_name(called, config.changed))
    folder.write_config(config.resolved)
    trainer.write_to(folder)
    if settings.resume:
        trainer.resume_checkpoint(settings.resume)
    return folder


def train_and_test(
    trainer: FederatedTrainer,
    folder: RunFolder,
    data: tuple[Any, Any, Any],
    saved: bool = True,
) -> dict[str, Any]:
    """Train, test the best round, and write what came of it.

    Parameters
    ----------
    trainer : FederatedTrainer
    folder : RunFolder
    data : tuple
        Of training, validation and test, as the trainer takes them.
    saved : bool
        Whether to write checkpoints; without them the test uses the last round.

    Returns
    -------
    dict
        What ``result.json`` holds.
    """
    settings = trainer.config.run_settings()
    train_data, valid_data, test_data = data
    best = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=settings.show_progress
    )
    start = time.perf_counter()
    with stage("testing", settings.show_progress, compiling), only_in_files():
        test_result = trainer.evaluate(test_data, load_best_model=saved)
        found = ", ".join(f"{name} : {value}" for name, value in test_result.items())
        trainer.logger.info(f"test, by round {trainer.tested_round}: {found}")
    test_seconds = time.perf_counter() - start

    folder.write_rounds(trainer.rows)
    seconds = seconds_by_phase(trainer.rows)
    seconds["evaluation"] += test_seconds
    seconds["total"] += test_seconds
    result = _result(trainer.config, trainer, best, test_result)
    exposed = _exposed(trainer, train_data, saved)
    if exposed:
        result["exposure"] = exposed
    if private := privacy(trainer.config, trainer.simulation):
        result["privacy"] = private
    if groups := _groups(trainer, train_data, test_data):
        result["groups"] = groups
    if in_world := trainer.simulation.in_world():
        result["world"] = in_world
    result |= {"seconds": seconds, "run_folder": str(folder.path)}
    result |= {"versions": versions(), "commit": commit()}
    if carried := trainer.simulation.carried():
        result["carried"] = carried
    if settings.resume:
        result["resumed_from"] = settings.resume
    result = {key: plain(value) for key, value in result.items()}
    folder.write_result(result)
    print(result_table(result))
    print(f"Everything is in {folder.path}")
    return result


def _exposed(
    trainer: FederatedTrainer, train_data: Any, saved: bool
) -> dict[str, float]:
    """Measure how far an attack's targets got by the round tested; {} without any."""
    simulation, config = trainer.simulation, trainer.config
    if config.parts.attack is None or simulation.clients_are_elsewhere:
        return {}
    dataset = train_data._dataset
    attack = config.make_methods(dataset).attack
    if attack is None or not attack.targets:
        return {}
    if not saved:
        simulation.state_dict()  # which brings what clients hold here
    topk = config.evaluation_settings().topk
    return exposure(trainer.model, client_data(dataset), attack.target_ids, topk)


def _groups(
    trainer: FederatedTrainer, train_data: Any, test_data: Any
) -> dict[str, dict[str, Any]]:
    """Compare clients in the test; {} where nobody knows all of their ranks."""
    ranks, simulation = trainer.eval_collector.ranks, trainer.simulation
    if ranks is None or simulation.clients_are_elsewhere:
        return {}
    held_out = test_data._dataset
    users = np.unique(held_out.inter_feat[held_out.uid_field].numpy()) - 1
    values = {"activity": np.diff(client_data(train_data._dataset).offsets)}
    rates = np.array(trainer.config.federation().compression_rates)
    if len(rates) > 1:
        values["compression_rate"] = rates[simulation.agreement.tier_of_client]
    if (links := simulation.links()) is not None:
        values["downlink_mb_per_s"] = links / 1e6
    k = max(trainer.config.evaluation_settings().topk)
    of_users = {name: known[users] for name, known in values.items()}
    return hits_by_group(ranks, k, **of_users)


def _result(
    config: Config,
    trainer: FederatedTrainer,
    best: tuple[float, dict[str, float] | None],
    test_result: Any,
) -> dict[str, Any]:
    settings, federation = config.run_settings(), config.federation()
    return {
        "model": settings.model,
        "dataset": settings.dataset,
        "item_embedding": settings.item_embedding,
        "compressor": config.method,
        "cut": settings.cut,
        "compression_rate": (
            list(federation.compression_rates) if config.obeys_rate else None
        ),
        "budget": federation.budget,
        "replica": federation.replica,
        "seed": settings.seed,
        "changed": config.changed,
        "learning_rates": _learning_rates(config),
        "rounds": trainer.simulation.round,
        "best_round": trainer.tested_round,
        "best_valid_score": best[0],
        "valid_score_bigger": config.evaluation_settings().bigger_is_better,
        "best_valid_result": best[1],
        "test_result": test_result,
        "communication": cost(config, trainer.simulation),
    }


def _learning_rates(config: Config) -> dict[str, float]:
    """Return what everything is trained with, whatever its default followed from."""
    clients = config.local_training()
    return {
        "items": clients.learning_rate,
        "users": clients.user_learning_rate,
        "network": clients.theta_learning_rate,
        "server": config.federation().optimization.learning_rate,
    }
