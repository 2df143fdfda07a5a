"""The whole run in one call: RecBole's ``run_recbole``, federated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_fedras.config import Config
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run import ranks
from recbole_fedras.run.finished import load_run
from recbole_fedras.run.setup import (
    load_data,
    log_of_its_own,
    require_effect,
    require_federated,
    split_data,
)
from recbole_fedras.run.shards import be_a_rank, processes
from recbole_fedras.run.whole import run


def run_recbole_fedras(
    model: str | type[FederatedRecommender] | None = None,
    dataset: str | pd.DataFrame | None = None,
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
    dataset : str or DataFrame, optional
        Name of a RecBole dataset, or interactions, one a row; default as configured.
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
        and ``run_folder``. Ranks of ``torchrun`` but the first return nothing.

    Raises
    ------
    ConfigError, DataError
        For a configuration and for data that cannot work, before any training.
    NonFiniteError
        If training diverges; the last good state is kept.
    """
    config = Config(model, dataset, config_file_list, config_dict, argv)
    require_federated(config)
    require_effect(config)
    if ranks.rank() > 0:
        be_a_rank(config)
        return {}
    with config.in_use(), log_of_its_own(config), processes(config) as links:
        return run(config, saved, links)


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

    Notes
    -----
    RecBole's exhaustive search needs a generator that today's hyperopt takes. Make and
    run a ``HyperTuning`` of it inside of ``with compat.hyper_tuning():``, of
    :mod:`recbole_fedras.config.compat`; other searches work as they are.
    """
    trial = {"show_progress": False} | (config_dict or {})
    return run_recbole_fedras(
        config_file_list=config_file_list, config_dict=trial, saved=saved
    )


def load_data_and_model(
    model_file: str | Path, dataset: pd.DataFrame | None = None
) -> tuple[Any, ...]:
    """Load a run as RecBole's function of this name does, which cannot read ours.

    What is returned works with RecBole's ``full_sort_topk`` and ``full_sort_scores``.

    Parameters
    ----------
    model_file : str or Path
        The run's folder, or a checkpoint in it; its best round is loaded.
    dataset : DataFrame, optional
        What the run was started with, if it was a DataFrame.

    Returns
    -------
    config, model, dataset, train_data, valid_data, test_data
        As in RecBole. Whatever the run's mode, ``valid_data`` and ``test_data`` rank
        all items, as RecBole's functions need.
    """
    finished = load_run(model_file, dataset=dataset)
    saved = finished.config.resolved
    everything = {
        "eval_args": saved["eval_args"] | {"mode": "full"},
        "eval_candidates": "fixed",
    }
    config = Config(dataset=dataset, config_dict=saved | everything)
    whole = load_data(config)
    return (config, finished.model, whole, *split_data(config, whole))
