"""RecBole's trainer, of which one epoch is one federated round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import early_stopping
from torch import Tensor

from recbole_fedras.config import Config, compat
from recbole_fedras.config.checkpoint import (
    best_of,
    plain,
    read_checkpoint,
    write_checkpoint,
)
from recbole_fedras.embedding.base import introduction
from recbole_fedras.errors import FederationError, NonFiniteError
from recbole_fedras.federation.budgets import make_budgets
from recbole_fedras.federation.rounds import Rounds
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.numeric.theta import unflatten
from recbole_fedras.run.console import only_in_files
from recbole_fedras.run.evaluation import FairCollector, candidate_scores
from recbole_fedras.run.privacy import noise_is_new
from recbole_fedras.run.progress import Interrupt, ProgressBar
from recbole_fedras.run.randomness import random_state, restore_random_state
from recbole_fedras.run.report import RunFolder, round_row, rounds_begun
from recbole_fedras.run.setup import MakeRounds, in_warmup, restore
from recbole_fedras.run.sums import means
from recbole_fedras.wire.payload import Payload

#: State of a run that is written after every round, unless another step is asked for.
CHEAP_BYTES = 2**25


class FederatedTrainer(Trainer):  # type: ignore[misc]
    """Trains by federated rounds; fitting, early stopping and metrics are RecBole's.

    Parameters
    ----------
    config : Config
    model : FederatedRecommender
    make : callable
        Makes rounds of a model, what each client is sent once, and a version.
    digest : str, optional
        Of the data, which checkpoints keep.

    Attributes
    ----------
    simulation : Rounds
    rows : list of dict
        A line of ``rounds.csv`` for every round.
    tested_round : int
        Of the model that was evaluated last.
    """

    def __init__(
        self,
        config: Config,
        model: FederatedRecommender,
        make: MakeRounds[Rounds],
        digest: str | None = None,
    ) -> None:
        self.config, self.model, self._make = config, model, make
        self._settings = config.run_settings()
        self._data_digest = digest
        self.simulation = make(model, self._introduction(), 0)
        check_after_warmup(config, self.simulation)
        with config.in_use():  # for metrics of the user's own
            super().__init__(config, model)
            self.eval_collector = FairCollector(config)
        self.cur_step: int  # RecBole's, of early stopping
        self.best_valid_result: dict[str, float] | None
        self.folder: RunFolder | None = None
        self.tested_round = -1
        self.rows: list[dict[str, Any]] = []
        self._valid_result: dict[str, float] | None = None
        self._interrupt = Interrupt()
        self._valid_data: Any = None

    def _introduction(self) -> Payload | None:
        """Return what each client is sent once of the items."""
        embedding = self.model.embedding
        if embedding is None:
            return None
        return introduction(embedding, self._settings.random_base)

    def _end_warmup(self) -> None:
        """Freeze what the warm-up has trained, and go on with the item embedding.

        Users, their Adam's states and the network stay as they are. States of the
        server's optimizer and of compressors, which are of another table, start anew,
        and so does the best validation score.
        """
        warm = self.simulation
        warm.state_dict()  # which brings what clients hold here, from wherever they are
        source = warm.server.parameters.item_table.numpy()
        n_items, dim = source.shape
        self.model.copy_held()
        network = self.model.theta()
        for name, value in unflatten(warm.server.parameters.theta, network).items():
            network[name].copy_(value)
        self.model.begin(self.config.make_item_embedding(n_items, dim, source))
        self.simulation = self._make(self.model, self._introduction(), warm.round)
        self.simulation.go_on_from(warm)
        self.best_valid_score = -np.inf if self.valid_metric_bigger else np.inf

    def write_to(self, folder: RunFolder) -> None:
        """Write checkpoints and rounds to ``folder`` instead of RecBole's one file."""
        self.folder = folder
        self.saved_model_file = str(folder.best)
        if noise_is_new(self.config):
            self.simulation.server.at_begin = folder.write_begun

    @compat.recbole()
    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], Any] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Train as RecBole does, under one progress bar over rounds.

        Ctrl-C lets the round end, saves, and raises KeyboardInterrupt; pressed twice,
        it does so at once and leaves the checkpoint of the last evaluation.
        """

        def after_evaluation(epoch: int, score: float) -> None:
            if saved:
                self._save_last()
            if callback_fn is not None:
                callback_fn(epoch, score)

        self._saved, self._valid_data = saved, valid_data
        self.simulation.asked_to_end = lambda: self._interrupt.asked
        self._bar = ProgressBar(self.epochs, self.start_epoch, show_progress)
        if self._evaluation_is_missing:
            self._evaluate_last(valid_data)
        if self._has_ended:  # resumed at its end; keep the best state
            self.eval_collector.data_collect(train_data)
            if saved:
                self._save_last()
            return self.best_valid_score, self.best_valid_result
        quietly = only_in_files() if show_progress else nullcontext()
        with self._bar, self._interrupt.noted(), quietly:
            try:
                result = super().fit(
                    train_data, valid_data, verbose, saved, False, after_evaluation
                )
            except FederationError as error:
                raise FederationError(f"{error}; {self._keep_last_good()}") from error
            finally:
                self.tensorboard.flush()
            if saved:
                self._save_last()
        return result  # type: ignore[no-any-return]

    @property
    def _evaluation_is_missing(self) -> bool:
        """Whether the run that is resumed ended between a round and its evaluation."""
        if not self.simulation.clients_are_elsewhere or not self.rows:
            return False
        due = self.eval_step > 0 and self.start_epoch % self.eval_step == 0
        return bool(due and not any(key.startswith("valid_") for key in self.rows[-1]))

    def _evaluate_last(self, valid_data: Any) -> None:
        """Evaluate the last round, as ``fit`` does after each."""
        score, result = self._valid_epoch(valid_data)
        self.best_valid_score, self.cur_step, _, is_best = early_stopping(
            score,
            self.best_valid_score,
            self.cur_step,
            max_step=self.stopping_step,
            bigger=self.valid_metric_bigger,
        )
        if is_best:
            self._save_checkpoint(self.start_epoch - 1)
            self.best_valid_result = result
        self._save_last()

    @property
    def _has_ended(self) -> bool:
        """Whether the run that is resumed was complete, or had stopped early."""
        stopped = self.cur_step > self.stopping_step
        return bool(stopped or self.start_epoch >= self.epochs)

    @compat.recbole()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        """Evaluate as RecBole does; of the best round, with what clients held then."""
        self.tested_round = self.simulation.round - 1
        if load_best_model:
            state = read_checkpoint(model_file or self.saved_model_file)
            self.tested_round = state["epoch"]
            self.load_clients(state)
        phase = "valid" if eval_data is self._valid_data else "test"
        found = self.simulation.evaluate(phase, load_best_model)
        if found is None:
            return super().evaluate(eval_data, False, None, show_progress)
        return self._added_up(found)

    def _added_up(self, found: dict[str, Any]) -> dict[str, float]:
        """Add up what shards found; ranks, if they are told, go by increasing user."""
        if all("ranks" in part for part in found.values()):
            users = np.concatenate([part["users"] for part in found.values()])
            ranks = np.concatenate([part["ranks"] for part in found.values()])
            self.eval_collector.ranks = ranks[np.argsort(users)]
        result = means(list(found.values()), self.config.evaluation_settings().decimals)
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    def load_clients(self, state: dict[str, Any]) -> None:
        """Let clients hold what they held when a state was saved; the server stays."""
        before = self.model.embedding
        self.model.load_state_dict(state["state_dict"])
        if self.model.embedding is not before:  # saved on the other side of a warm-up
            self.simulation = self._make(self.model, None, state["epoch"] + 1)
        self.simulation.load_clients(state["simulation"]["shard"])

    def resume_checkpoint(self, resume_file: str) -> None:
        """Continue from a checkpoint of :meth:`fit`, in this run's own folder."""
        self.simulation, state = restore(
            self.config, self.model, self._make, resume_file, self._data_digest
        )
        if noise_is_new(self.config):
            self._recall(rounds_begun(resume_file))
        self.start_epoch = state["epoch"] + 1
        self.cur_step = state["cur_step"]
        self.best_valid_score = state["best_valid_score"]
        self.best_valid_result = state["best_valid_result"]
        self.model.load_other_parameter(state["other_parameter"])
        self.rows = json.loads(state["rows"])
        restore_random_state(state["random"])
        best = best_of(resume_file)
        if best.name != "best.pth":
            self.logger.warning(f"No best.pth beside {best}: it counts as the best")
        shutil.copyfile(best, self.saved_model_file)
        self.logger.info(f"Resuming {resume_file} from round {self.start_epoch}")

    def _recall(self, begun: int) -> None:
        """Count rounds that began after a checkpoint; their noise cannot come again."""
        self.simulation.server.recall(begun)
        if self.folder is not None:
            self.folder.write_begun(begun)
            self.simulation.server.at_begin = self.folder.write_begun

    # RecBole's hooks.

    def _build_optimizer(self, **kwargs: Any) -> None:
        """Nothing: clients run SGD of their own, and the server steps by itself."""

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[..., Tensor] | None = None,
        show_progress: bool = False,
    ) -> float:
        if self._interrupt.asked:
            raise KeyboardInterrupt(self._keep_last_good())
        start = perf_counter()
        if epoch_idx < self.config.warmup_rounds:
            self.cur_step = -1  # a warm-up does not stop early
        elif in_warmup(self.config, self.model):
            self._end_warmup()
        try:
            with torch.no_grad():
                report = self.simulation.run_round()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {self._keep_last_good()}") from error
        row = round_row(epoch_idx, report)
        row["seconds_total"] = perf_counter() - start
        self.rows.append(row)
        totals = self.simulation.ledger.totals
        for key, total in totals.items():
            self.tensorboard.add_scalar(f"Communication/{key}", total, epoch_idx)
        self._bar.advance(report, totals, row["seconds_total"])
        if self._saved and self._checkpoint_is_due(epoch_idx):
            self._save_last(rounds=False)  # the checkpoint has them
        return float("nan") if report.loss is None else report.loss

    def _checkpoint_is_due(self, epoch: int) -> bool:
        """Whether to save after a round; those evaluated are saved after that."""
        evaluated = self.eval_step > 0 and (epoch + 1) % self.eval_step == 0
        if self.simulation.clients_are_elsewhere:
            return True
        return not evaluated and (epoch + 1) % self._checkpoint_step == 0

    @property
    def _checkpoint_step(self) -> int:
        """Rounds between checkpoints: by default one, where that is cheap."""
        if self._settings.checkpoint_step is not None:
            return self._settings.checkpoint_step
        cheap = self.simulation.state_bytes() <= CHEAP_BYTES
        return 1 if cheap else max(1, self.eval_step)

    def _valid_epoch(
        self, valid_data: Any, show_progress: bool = False
    ) -> tuple[float, dict[str, float]]:
        start = perf_counter()
        self._bar.doing = "evaluating"
        try:
            score, result = super()._valid_epoch(valid_data, show_progress=False)
        except NonFiniteError as error:
            done = self.simulation.round - 1
            kept = self.folder.path if self.folder else "no folder"
            raise NonFiniteError(
                f"round {done}: {error}; checkpoints from before are in {kept}"
            ) from error
        self._bar.doing = ""
        seconds = perf_counter() - start
        row = self.rows[-1]
        self._valid_result = plain(dict(result))
        row |= {f"valid_{name}": value for name, value in self._valid_result.items()}
        row["seconds_evaluation"] = seconds
        row["seconds_total"] += seconds
        self._bar.figures[self.valid_metric] = f"{score:.4f}"
        return score, result

    def _neg_sample_batch_eval(self, batched_data: Any) -> Any:
        interaction, _, positive_u, positive_i = batched_data
        if interaction[self.model.ITEM_ID].dim() == 1:  # RecBole's own loader
            return super()._neg_sample_batch_eval(batched_data)
        scores = candidate_scores(self.model, interaction)
        return interaction, scores, positive_u, positive_i

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Write the state after ``epoch`` as plain data; RecBole's loaders read it."""
        file = kwargs.get("saved_model_file", self.saved_model_file)
        write_checkpoint(self._state(epoch, self._valid_result), Path(file))
        self.simulation.keep_best()
        if verbose:
            self.logger.info(f"Saving current: {file}")

    # Checkpoints.

    def _state(
        self, epoch: int, best_valid_result: dict[str, float] | None
    ) -> dict[str, Any]:
        simulation = self.simulation.state_dict()  # first: the model is a view of it
        return {
            "config": self.config.resolved,
            "data_digest": self._data_digest,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": plain(best_valid_result),
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "optimizer": {},
            "simulation": simulation,
            "rows": json.dumps(self.rows),
            "random": random_state(),
        }

    def _save_last(self, rounds: bool = True) -> Path | None:
        """Write the state after the newest round, and ``rounds.csv`` if asked to."""
        if self.folder is None or not self.rows:
            return None
        state = self._state(self.simulation.round - 1, self.best_valid_result)
        write_checkpoint(state, self.folder.last)
        if rounds:
            self.folder.write_rounds(self.rows)
        return self.folder.last

    def _keep_last_good(self) -> str:
        try:
            path = self._save_last()
        except FederationError:  # shards that nobody can ask any more
            path = self.folder.last if self.folder else None
            path = path if path and path.is_file() else None
        return f"continue with --resume={path}" if path else "no round was completed"


def check_after_warmup(config: Config, rounds: Rounds) -> None:
    """Refuse before a warm-up what could not be made or compressed after it.

    Raises
    ------
    ConfigError
        If there are too few items, or a compressor cannot work with their embedding.
    """
    if not config.warmup_rounds or rounds.embedding is not None:
        return
    agreement = rounds.agreement
    embedding = config.make_item_embedding(agreement.n_items, agreement.dim)
    if embedding is None:
        return
    embedding.validate()
    uplink, downlink = config.make_compressors()
    on_grid = config.parts.replica[1].on_grid
    make_budgets(
        config.federation(),
        embedding.n_rows,
        embedding.width,
        agreement.n_theta + embedding.n_theta,
        uplink,
        None if on_grid else downlink,
    )
