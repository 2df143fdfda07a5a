"""Configuration: RecBole's, with our defaults, strict keys and typed settings."""

from __future__ import annotations

import ast
import copy
import operator
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.utils import get_model

from recbole_fedras import compat, registry
from recbole_fedras.checkpoint import plain, read_checkpoint
from recbole_fedras.compressor import Compressor
from recbole_fedras.federation.settings import (
    AGGREGATIONS,
    REPLICAS,
    Federation,
    LocalTraining,
)
from recbole_fedras.model import FederatedRecommender

#: Keys that RecBole reads although none of its YAML files sets them.
_RECBOLE_KEYS = {
    "additional_feat_suffix", "benchmark_filename", "config_files", "discretization",
    "double_tower", "encoding", "group_offset", "ip", "local_rank", "loss_type",
    "neg_sampling", "nproc", "numerical_features", "port", "reg_weight", "save_step",
    "token_num_threshold", "training_neg_sample_num", "world_size",
}  # fmt: skip

#: RecBole's training options that a federated client does not have, and their values.
_UNSUPPORTED = {
    "learner": "sgd",
    "weight_decay": 0,
    "clip_grad_norm": None,
    "enable_amp": False,
    "enable_scaler": False,
}

#: Keys that may differ when a run is resumed: they do not change what was computed.
_RESUMABLE = {
    "epochs", "stopping_step", "resume", "checkpoint_dir", "data_path", "show_progress",
    "state", "gpu_id", "use_gpu", "n_jobs", "config_files", "log_wandb",
    "wandb_project",
}  # fmt: skip


_SPLITS = ("LS", "RS", "TS")
_LEAVE_ONE_OUT = ("valid_and_test", "valid_only", "test_only")


class Config(RecBoleConfig):  # type: ignore[misc]
    """RecBole's ``Config`` with our defaults beneath the user's values.

    For federated models the order is, later over earlier: RecBole's defaults, our
    ``overall.yaml``, ``model/{model}.yaml``, ``compressor/{compressor}.yaml`` and
    ``dataset/{dataset}.yaml``; then config files, ``config_dict``, command line.
    For RecBole's own models RecBole's defaults win over ours.

    Parameters
    ----------
    model, dataset, config_file_list, config_dict
        As in RecBole.
    argv : sequence of str
        Command line arguments ``--key=value``; never taken from ``sys.argv``.

    Raises
    ------
    ValueError
        For unknown keys and for values that are not allowed, by name.

    Attributes
    ----------
    resolved : dict
        Every key and value that defines the run, as plain types, before RecBole adds
        derived ones; a run started from it alone is the same run.
    """

    external_config_dict: dict[str, Any]
    internal_config_dict: dict[str, Any]

    def __init__(
        self,
        model: Any = None,
        dataset: str | None = None,
        config_file_list: Sequence[str] | None = None,
        config_dict: dict[str, Any] | None = None,
        argv: Sequence[str] = (),
    ) -> None:
        self._argv = argv
        self._named = {
            key: value
            for key, value in (("model", model), ("dataset", dataset))
            if isinstance(value, str)
        }
        self._declared: set[str] = set()
        for file in config_file_list or []:
            if not Path(file).is_file():
                raise FileNotFoundError(f"config_files: there is no file {file!r}")
        _make_importable(config_file_list or [])
        try:
            super().__init__(
                model, dataset, config_file_list, copy.deepcopy(config_dict or {})
            )
        except (NotImplementedError, TypeError, KeyError, RuntimeError) as error:
            raise ValueError(f"configuration: {error}") from error  # RecBole's checks
        if not self.final_config_dict["use_gpu"]:  # RecBole ignores it
            self.final_config_dict["device"] = torch.device("cpu")

    # What RecBole calls, in this order.

    def compatibility_settings(self) -> None:
        """Nothing: ``recbole_fedras.compat`` has done it, for today's numpy."""

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Read strings as Python literals, like RecBole, but without ``eval``."""
        return {
            key: _literal(value) if isinstance(value, str) else value
            for key, value in config_dict.items()
        }

    def _load_config_files(self, file_list: Sequence[str] | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for file in file_list or []:
            try:
                text = Path(file).read_text(encoding="utf-8")
                values = yaml.load(text, Loader=self.yaml_loader)  # noqa: S506
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"config_files: {file!r} is not YAML: {error}"
                ) from error
            if not isinstance(values or {}, dict):
                raise ValueError(
                    f"config_files: {file!r} does not hold keys and values"
                )
            merged = self._merge(merged, values or {})
        return merged

    def _load_cmd_line(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for argument in self._argv:
            key, equals, value = argument.removeprefix("--").partition("=")
            if not (argument.startswith("--") and key and equals):
                raise ValueError(f"argument {argument!r} must read --key=value")
            if values.get(key, value) != value:
                raise ValueError(f"argument --{key} stands twice with other values")
            values[key] = value
        return self._convert_config_dict(values)

    def _merge_external_config_dict(self) -> None:
        given: dict[str, Any] = {}
        for source in (
            self.file_config_dict,
            self.variable_config_dict,
            self.cmd_config_dict,
            self._named,
        ):
            given = self._merge(given, source)
        self.external_config_dict = given
        if not given.get("resume"):
            return
        saved = read_checkpoint(given["resume"])["config"]
        for key in given.keys() - _RESUMABLE:
            if plain(given[key]) != saved.get(key):
                raise ValueError(
                    f"{key}={given[key]!r} cannot change when resuming: the run was "
                    f"started with {saved.get(key)!r}"
                )
        self.external_config_dict = self._merge(self._merge({}, saved), given)

    def _merge(self, older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
        """Put ``newer`` over ``older``; a class goes with the name that it came with.

        A source that names a model's class declares that model's own keys.
        """
        shipped = registry.read_properties("model", str(newer.get("model")))
        if newer.get("model_class") not in (None, shipped.get("model_class")):
            self._declared |= newer.keys()
        merged = older | newer
        for kind in ("model", "compressor"):
            renamed = newer.get(kind, older.get(kind)) != older.get(kind)
            if renamed and f"{kind}_class" not in newer:
                merged.pop(f"{kind}_class", None)
        return merged

    def _get_model_and_dataset(self, model: Any, dataset: Any) -> tuple[str, Any, str]:
        given = self.external_config_dict
        overall = registry.read_properties(".", "overall")
        model = model or given.get("model") or overall["model"]
        dataset = dataset or given.get("dataset") or overall["dataset"]
        if not isinstance(model, str):
            return model.__name__, model, str(dataset)
        path = given.get("model_class") or registry.read_properties("model", model).get(
            "model_class"
        )
        if path:
            model_class = registry.load_class("model_class", path, FederatedRecommender)
            return model, model_class, str(dataset)
        try:
            return model, get_model(model), str(dataset)
        except (ValueError, AttributeError, ImportError) as error:
            valid = list(registry.names("model"))
            raise ValueError(
                f"model={model!r} is unknown; {registry.nearest(model, valid)}"
                f"federated models: {', '.join(valid)}, or set model_class"
            ) from error

    def _load_internal_config_dict(
        self, model: str, model_class: Any, dataset: str
    ) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        recbole = self.internal_config_dict
        overall = registry.read_properties(".", "overall")
        given = self.external_config_dict
        self.compressor_name = str(given.get("compressor", overall["compressor"]))
        compressor = registry.read_properties("compressor", self.compressor_name)
        self._compressor_class = self._find_compressor(
            given.get("compressor_class", compressor.get("compressor_class"))
        )
        hyper_parameters = registry.hyper_parameters(self._compressor_class)
        if issubclass(model_class, FederatedRecommender):
            self.internal_config_dict = {
                **recbole,
                **overall,
                **registry.read_properties("model", model),
                **hyper_parameters,
                **compressor,
                **registry.read_properties("dataset", dataset),
            }
        else:
            self.internal_config_dict = {**overall, **hyper_parameters, **recbole}
            compat.trust_recboles_checkpoints()
        self._refuse_unknown_keys()

    def _find_compressor(self, path: str | None) -> type[Compressor]:
        if path:
            return registry.load_class("compressor_class", path, Compressor)
        valid = list(registry.names("compressor"))
        raise ValueError(
            f"compressor={self.compressor_name!r} is unknown; "
            f"{registry.nearest(self.compressor_name, valid)}"
            f"known: {', '.join(valid)}, or set compressor_class"
        )

    def _refuse_unknown_keys(self) -> None:
        known = {*self.internal_config_dict, *_RECBOLE_KEYS}
        known |= {"model_class", "compressor_class", *self._declared}
        for kind in ("model", "compressor"):  # files may hold keys of several
            for name in registry.names(kind):
                known |= registry.read_properties(kind, name).keys()
        known |= {key for keys in self.parameters.values() for key in keys}
        for key in self.external_config_dict:
            if key not in known:
                near = registry.nearest(key, sorted(known))
                raise ValueError(
                    f"unknown config key {key!r}; {near}docs/config.md has all keys"
                )

    def _get_final_config_dict(self) -> dict[str, Any]:
        final: dict[str, Any] = super()._get_final_config_dict()
        names = {"model": self.model, "dataset": self.dataset}
        final.update(names, compressor=self.compressor_name)
        final = copy.deepcopy(final)
        self.resolved = {
            key: plain(value)
            for key, value in sorted(final.items())
            if key not in ("MODEL_TYPE", "resume", "config_files")
        }
        return final

    def _set_default_parameters(self) -> None:
        self._check_common()
        super()._set_default_parameters()
        if issubclass(self.model_class, FederatedRecommender):
            self.federation(), self.local_training(), self.make_compressor()
            self._check_federated()

    # Typed settings.

    def federation(self) -> Federation:
        """Return who takes part and how updates are combined."""
        return Federation(
            seed=self._integer("seed", 0, 2**32 - 1),
            client_fraction=self._number("client_fraction", above=0, at_most=1),
            compression_rates=self._compression_rates(),
            aggregation=self._choice("aggregation", AGGREGATIONS),
            replica=self._choice("replica", REPLICAS),
            downlink_feedback=self._downlink_feedback(),
        )

    def local_training(self) -> LocalTraining:
        """Return how clients train."""
        negatives = self["train_neg_sample_args"]
        if not isinstance(negatives, dict):
            self._refuse("train_neg_sample_args", "a dict with sample_num")
        if negatives.get("distribution") != "uniform" or negatives.get("dynamic"):
            self._refuse(
                "train_neg_sample_args",
                "distribution: uniform and not dynamic, as a client knows neither the "
                "popularity of items nor others' scores",
            )
        sample_num = negatives.get("sample_num")
        if type(sample_num) is not int or sample_num < 1:
            self._refuse("train_neg_sample_args", "an integer sample_num >= 1")
        return LocalTraining(
            learning_rate=self._number("learning_rate", above=0),
            user_learning_rate=self._number(
                "learning_rate"
                if self["user_learning_rate"] is None
                else "user_learning_rate",
                above=0,
            ),
            theta_learning_rate=self._number("theta_learning_rate", above=0),
            local_epochs=self._integer("local_epochs", 1),
            batch_size=self._integer("train_batch_size", 1),
            n_negatives=sample_num,
        )

    def make_compressor(self) -> Compressor:
        """Build the compressor from the keys named like its constructor parameters."""
        keys = registry.hyper_parameters(self._compressor_class)
        try:
            compressor = self._compressor_class(**{key: self[key] for key in keys})
        except TypeError as error:
            raise ValueError(f"compressor={self.compressor_name!r}: {error}") from error
        if self["bandwidth"] is not None and not compressor.heterogeneous:
            self._refuse("bandwidth", f"None: {self.compressor_name} needs equal rates")
        return compressor

    def _compression_rates(self) -> tuple[float, ...]:
        bandwidth = self["bandwidth"]
        if bandwidth is None:
            return (self._number("compression_rate", at_least=0, below=1),)
        allowed = "None or two rates [lowest, highest] with 0 <= lowest <= highest < 1"
        if not (
            isinstance(bandwidth, list | tuple)
            and len(bandwidth) == 2
            and all(_is_number(rate) for rate in bandwidth)
            and 0 <= bandwidth[0] <= bandwidth[1] < 1
        ):
            self._refuse("bandwidth", allowed)
        n_tiers = self._integer("bandwidth_tiers", 1)
        rates = np.unique(np.linspace(bandwidth[0], bandwidth[1], n_tiers).round(10))
        return tuple(rates.tolist())

    def _downlink_feedback(self) -> bool:
        feedback = self["downlink_feedback"]
        if type(feedback) is not bool:
            self._refuse("downlink_feedback", "True or False")
        if feedback and self["bandwidth"] is not None:
            self._refuse(
                "downlink_feedback", "False with bandwidth, whose tiers differ"
            )
        return bool(feedback)

    def _check_common(self) -> None:
        """Check what RecBole would stumble over later."""
        for key in ("metrics", "topk", "eval_args", "valid_metric"):
            if self[key] is None:
                self._refuse(key, "set")
        if not isinstance(self["data_path"], str):
            self._refuse("data_path", "a folder")

    def _check_federated(self) -> None:
        self._integer("epochs", 1)
        self._integer("embedding_size", 1)
        self._integer("eval_batch_size", 1)
        self._integer("stopping_step", 0)
        self._integer("eval_step", 0)
        n_jobs = self["n_jobs"]
        if type(n_jobs) is not int or (n_jobs < 1 and n_jobs != -1):
            self._refuse("n_jobs", "-1 or an integer from 1")
        self._number("init_std", at_least=0)
        self._choice("eval_candidates", ("fixed", "recbole"))
        self._choice("short_users", ("refuse", "keep"))
        for key, only in _UNSUPPORTED.items():
            if self[key] != only:
                self._refuse(key, f"{only!r} in federated training")
        self._check_dict("eval_args", {"split", "group_by", "order", "mode"})
        negatives = {"distribution", "sample_num", "alpha", "dynamic", "candidate_num"}
        self._check_dict("train_neg_sample_args", negatives)
        eval_args = self["eval_args"]
        split = eval_args["split"]
        if not isinstance(split, dict) or len(split) != 1 or set(split) - {*_SPLITS}:
            self._refuse("eval_args", f"with a split by one of {', '.join(_SPLITS)}")
        (way, how), parts = next(iter(split.items())), ("train", "valid", "test")
        if way == "LS" and how not in _LEAVE_ONE_OUT:
            self._refuse("eval_args", f"with LS one of {', '.join(_LEAVE_ONE_OUT)}")
        if way != "LS" and not (isinstance(how, list) and len(how) == len(parts)):
            self._refuse("eval_args", f"with {way} three ratios, of {parts}")
        if eval_args["order"] not in ("RO", "TO"):
            self._refuse("eval_args", "with order RO or TO")
        for phase, mode in eval_args["mode"].items():
            if mode[:3] == "uni" and max(self["topk"]) > int(mode[3:]) + 1:
                self._refuse("topk", f"at most the candidates of mode {phase}: {mode}")
            if self["eval_candidates"] == "fixed" and mode.startswith("pop"):
                self._refuse(
                    "eval_candidates", f"'recbole' for eval_args mode {phase}: {mode}"
                )
        valid_metric = self["valid_metric"].lower()
        metrics = [metric.lower() for metric in self["metrics"]]
        names = [f"{metric}@{k}" for metric in metrics for k in self["topk"]]
        if valid_metric not in [*names, *metrics]:
            self._refuse("valid_metric", f"one of {names}, from metrics and topk")

    def _check_dict(self, key: str, allowed: set[str]) -> None:
        for name in set(self[key]) - allowed:
            near = registry.nearest(str(name), sorted(allowed))
            self._refuse(key, f"without {name!r}; {near}allowed: {sorted(allowed)}")

    def _number(
        self,
        key: str,
        above: float | None = None,
        at_least: float | None = None,
        below: float | None = None,
        at_most: float | None = None,
    ) -> float:
        value = self[key]
        bounds = [
            (above, ">", operator.gt),
            (at_least, ">=", operator.ge),
            (below, "<", operator.lt),
            (at_most, "<=", operator.le),
        ]
        used = [
            (bound, sign, test) for bound, sign, test in bounds if bound is not None
        ]
        if not _is_number(value) or not all(test(value, b) for b, _, test in used):
            what = " and ".join(f"{sign} {bound}" for bound, sign, _ in used)
            self._refuse(key, f"a number {what}")
        return float(value)

    def _integer(self, key: str, at_least: int, at_most: int = 2**62) -> int:
        value = self[key]
        if type(value) is not int or not at_least <= value <= at_most:
            self._refuse(key, f"an integer from {at_least} to {at_most}")
        return int(value)

    def _choice(self, key: str, choices: Iterable[str]) -> str:
        if self[key] not in choices:
            self._refuse(key, f"one of {', '.join(choices)}")
        return str(self[key])

    def _refuse(self, key: str, allowed: str) -> None:
        raise ValueError(f"{key}={self[key]!r} is not allowed; it must be {allowed}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and bool(np.isfinite(value))


def _literal(text: str) -> Any:
    """Read ``text`` as a Python literal, true or false; else leave it a string."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _make_importable(config_files: Iterable[str]) -> None:
    """Let modules beside the config files and in the working folder be imported."""
    for folder in [*(Path(file).resolve().parent for file in config_files), Path.cwd()]:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
