"""RecBole's own training on everybody's data, ranked as the federated runs are."""

from __future__ import annotations

from math import inf, nan
from time import perf_counter
from typing import Any

from recbole.data.utils import create_samplers, get_dataloader
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_fedras.config import Config, compat
from recbole_fedras.config.checkpoint import plain
from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.run.evaluation import FairCollector
from recbole_fedras.run.setup import prepare_data

#: Keys that a central run shares with the federated ones; all others are RecBole's.
_SHARED = (
    "dataset", "data_path", "seed", "reproducibility", "use_gpu", "embedding_size",
    "USER_ID_FIELD", "ITEM_ID_FIELD", "RATING_FIELD", "TIME_FIELD", "load_col",
    "eval_args", "metrics", "topk", "valid_metric", "eval_batch_size",
    "checkpoint_dir",
)  # fmt: skip


def centralised(keys: Keys) -> Outcome:
    """Train RecBole's BPR as RecBole does, on a run's split; test its best epoch.

    Matrix factorisation on pairs, by Adam, with RecBole's own defaults: learning rate
    0.001, batches of 2048, 300 epochs, early stopping.

    Parameters
    ----------
    keys : dict
        Of a federated run: its data, split, candidates, metrics and dimensions count.

    Returns
    -------
    dict
        ``result`` and ``ranks``, as of a run; nothing is sent, but everybody's data.
    """
    config = Config(config_dict=keys)
    shared = {key: config.resolved[key] for key in _SHARED if key in config.resolved}
    own = Config("BPR", config_dict=shared)
    start = perf_counter()
    with config.in_use(), compat.recbole(), compat.trusted_checkpoints():
        loaders = prepare_data(config)
        parts = [loader._dataset for loader in loaders]
        sampler = create_samplers(own, parts[0], parts)[0]
        train = get_dataloader(own, "train")(own, parts[0], sampler, shuffle=True)
        init_seed(own["seed"], own["reproducibility"])
        trainer = _Trainer(own, BPR(own, parts[0]).to(own["device"]))
        trainer.eval_collector = FairCollector(config)
        trainer.fit(train, loaders[1], verbose=False)
        tested = trainer.evaluate(loaders[2])
    ranks = trainer.eval_collector.ranks
    result = {
        "dataset": config.run_settings().dataset,
        "test_result": plain(dict(tested)),
        "best_valid_score": float(trainer.best_valid_score),
        "communication": _nothing_sent(),
        "seconds": {"total": perf_counter() - start},
    }
    return {"result": result, "ranks": [] if ranks is None else ranks.tolist()}


class _Trainer(Trainer):  # type: ignore[misc]
    """RecBole's, which also ranks fixed candidates, a row of items for each user."""

    def _neg_sample_batch_eval(self, batched_data: Any) -> Any:
        interaction, _, positive_u, positive_i = batched_data
        items = interaction[self.model.ITEM_ID].to(self.device)
        if items.dim() == 1:  # RecBole's own loader
            return super()._neg_sample_batch_eval(batched_data)
        users = interaction[self.model.USER_ID].to(self.device)
        pairs = {
            self.model.USER_ID: users.repeat_interleave(items.shape[1]),
            self.model.ITEM_ID: items.flatten(),
        }
        scores = self.model.predict(pairs).reshape(items.shape)
        scores = scores.masked_fill(items == 0, -inf)  # [PAD]
        return interaction, scores, positive_u, positive_i


def _nothing_sent() -> dict[str, float]:
    sent = dict.fromkeys(("uplink_bytes", "downlink_bytes", "catch_up_bytes"), 0)
    return sent | {"dense_bytes": nan, "wire_compression_rate": nan}
