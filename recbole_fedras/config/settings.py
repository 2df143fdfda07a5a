"""What a run and its evaluation are configured by, as plain validated values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Uncut:
    """What was asked for, where a run does less instead of compressing.

    Attributes
    ----------
    rounds : int
    client_fraction : float
    dim : int
    """

    rounds: int
    client_fraction: float
    dim: int


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What is run, where, and what it leaves behind.

    Attributes
    ----------
    model, dataset, item_embedding : str
        Names.
    seed : int
    reproducibility : bool
        RecBole's: whether torch keeps to deterministic algorithms.
    device : torch.device
    rounds : int
    cut : str or None
        Key that the compression rate cuts instead of compressing.
    uncut : Uncut
        The run without the cut.
    n_jobs : int
        Threads over clients; -1: one per core.
    n_shards : int
        Processes that clients are spread over; 1: none but this one.
    data_path : str
        Folder of the dataset.
    checkpoint_dir : str
        Folder of runs' folders.
    resume : str or None
        Checkpoint of the run to continue.
    show_progress : bool
    mb_per_s : dict of str to float
        What a client's link carries, 10^6 bytes a second, by direction.
    random_base : bool
        Whether items' base vectors are drawn from the seed, so that none are sent.
    checkpoint_step : int or None
        Rounds between checkpoints; None: one where that is cheap.
    """

    model: str
    dataset: str
    item_embedding: str
    seed: int
    reproducibility: bool
    device: torch.device
    rounds: int
    cut: str | None
    uncut: Uncut
    n_jobs: int
    n_shards: int
    data_path: str
    checkpoint_dir: str
    resume: str | None
    show_progress: bool
    mb_per_s: dict[str, float]
    random_base: bool
    checkpoint_step: int | None


@dataclass(frozen=True, slots=True)
class DeploymentSettings:
    """What a deployment needs beside a run's settings.

    Attributes
    ----------
    min_shards : int
        Shards to wait for, and without which no round counts.
    deadline : float or None
        Seconds that a round waits for answers.
    catalogue : str or None
        File of item tokens, one a line; None: all that shards have.
    drop_unknown_items : bool
        Whether interactions with other items are left out, not refused.
    demands : dict or None
        Of a node: keys that a run must have; None: any.
    """

    min_shards: int
    deadline: float | None
    catalogue: str | None
    drop_unknown_items: bool
    demands: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How quality is measured.

    Attributes
    ----------
    seed : int
    mode : dict of str to str
        RecBole's, as uni99 or full, by phase: valid, test.
    candidates : {'fixed', 'recbole', 'file'}
        Whether sampled items are drawn once, or anew at each evaluation, or listed.
    listed : str
        Files that list them, but for the phase and ``.negative`` behind it.
    encoding : str
        Of these.
    batch_size : int
        Scores computed at a time.
    topk : tuple of int
    decimals : int
        Of metrics.
    bigger_is_better : bool
        Of the metric that validation goes by.
    user_field, item_field : str
    """

    seed: int
    mode: dict[str, str]
    candidates: str
    listed: str
    encoding: str
    batch_size: int
    topk: tuple[int, ...]
    decimals: int
    bigger_is_better: bool
    user_field: str
    item_field: str

    def negative_file(self, phase: str) -> str | None:
        """Return the file that lists a phase's negatives; validation may have none."""
        file = f"{self.listed}.{phase}.negative"
        needed = phase == "test" or Path(file).is_file()
        return file if self.candidates == "file" and needed else None
