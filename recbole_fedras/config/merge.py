"""Configuration: RecBole's, with our defaults, strict keys and typed settings."""

from __future__ import annotations

import ast
import copy
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from recbole.config import Config as RecBoleConfig

from recbole_fedras.compressor import Compressor
from recbole_fedras.compressor.base import kept
from recbole_fedras.config import build as methods
from recbole_fedras.config import compat, registry
from recbole_fedras.config import schema as keys
from recbole_fedras.config.checkpoint import plain, read_checkpoint
from recbole_fedras.data.features import item_features
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.wire.ledger import DIRECTIONS

#: Keys that RecBole reads although none of its YAML files sets them.
_RECBOLE_KEYS = {
    "additional_feat_suffix", "benchmark_filename", "config_files", "discretization",
    "double_tower", "encoding", "group_offset", "ip", "local_rank", "loss_type",
    "neg_sampling", "nproc", "numerical_features", "port", "reg_weight", "save_step",
    "token_num_threshold", "training_neg_sample_num", "world_size",
}  # fmt: skip

#: Keys that may differ when a run is resumed: they do not change what was computed.
_RESUMABLE = {
    "epochs", "stopping_step", "resume", "checkpoint_dir", "data_path", "show_progress",
    "state", "gpu_id", "use_gpu", "n_jobs", "config_files", "log_wandb",
    "uplink_mb_per_s", "downlink_mb_per_s",
    "wandb_project",
}  # fmt: skip


class Config(RecBoleConfig):  # type: ignore[misc]
    """RecBole's ``Config`` with our defaults beneath the user's values.

    For federated models the order is, later over earlier: RecBole's defaults, our
    ``overall.yaml``, ``model/``, ``item_embedding/``, ``preset/``, ``compressor/`` and
    ``dataset/``, each a YAML file of the name chosen; then config files,
    ``config_dict``, command line.
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
    compressors : dict of str to tuple
        Name and class of the ``uplink``'s and the ``downlink``'s compressor.
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
        # RecBole ignores use_gpu; binary codes are optimised by compiled code only.
        if not self.final_config_dict["use_gpu"] or getattr(
            self.model_class, "binary", False
        ):
            self.final_config_dict["device"] = torch.device("cpu")

    # What RecBole calls, in this order.

    def compatibility_settings(self) -> None:
        """Nothing: ``recbole_fedras.config.compat`` has done it, for today's numpy."""

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
        for kind in ("model", "item_embedding", *methods.COMPRESSOR_KEYS):
            renamed = newer.get(kind, older.get(kind)) != older.get(kind)
            if renamed and f"{kind}_class" not in newer:
                merged.pop(f"{kind}_class", None)
        return merged

    def _get_model_and_dataset(self, model: Any, dataset: Any) -> tuple[str, Any, str]:
        given = self.external_config_dict
        overall = registry.read_properties(".", "overall")
        preset = self._preset(given.get("preset"))
        model = model or given.get("model") or preset.get("model") or overall["model"]
        dataset = dataset or given.get("dataset") or overall["dataset"]
        if not isinstance(model, str | type):
            raise ValueError(f"model={model!r} is not allowed; it must be a name")
        if not isinstance(model, str):
            return model.__name__, model, str(dataset)
        path = given.get("model_class") or registry.read_properties("model", model).get(
            "model_class"
        )
        if path:
            model_class = registry.load_class("model_class", path, FederatedRecommender)
            return model, model_class, str(dataset)
        try:
            return model, compat.find_recboles_model(model), str(dataset)
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
        preset = self._preset(given.get("preset"))
        for kind in ("compressor", "item_embedding"):
            if f"{kind}_class" in given and kind not in given:
                given[kind] = str(given[f"{kind}_class"]).rpartition(".")[2]
        federated = issubclass(model_class, FederatedRecommender)
        of_model = registry.read_properties("model", model) if federated else {}
        chosen = overall | of_model | preset | given
        self.compressor_name = str(chosen["compressor"])
        self.compressors = methods.find_compressors(chosen)
        self._item_embedding_class = methods.find_item_embedding(chosen)
        taken = {*overall, *(key for keys in self.parameters.values() for key in keys)}
        of_items: dict[str, Any] = {"use_base": False}
        of_items |= methods.own_keys(
            "item_embedding",
            str(chosen["item_embedding"]),
            self._item_embedding_class,
            taken,
        )
        taken |= of_model.keys() | of_items.keys()
        own: dict[str, Any] = {}
        for name, compressor_class in self.compressors.values():
            own |= methods.own_keys("compressor", name, compressor_class, taken)
        own.pop("compressor_class", None)  # of one of them; the names say which
        if federated:
            self.internal_config_dict = {
                **recbole,
                **overall,
                **of_model,
                **of_items,
                **preset,
                **own,
                **registry.read_properties("dataset", dataset),
            }
        else:
            self.internal_config_dict = {**overall, **of_items, **own, **recbole}
            compat.trust_recboles_checkpoints()
        self._refuse_unknown_keys()

    def _preset(self, name: str | None) -> dict[str, Any]:
        valid = list(registry.names("preset"))
        if name is not None and name not in valid:
            raise ValueError(
                f"preset={name!r} is unknown; {registry.nearest(str(name), valid)}"
                f"known: {', '.join(valid)}"
            )
        return registry.read_properties("preset", name) if name else {}

    def _refuse_unknown_keys(self) -> None:
        known = {*self.internal_config_dict, *_RECBOLE_KEYS}
        known |= {"model_class", *self._declared}
        known |= {
            f"{key}_class" for key in ("item_embedding", *methods.COMPRESSOR_KEYS)
        }
        for kind in ("model", "item_embedding", "compressor"):  # files may have several
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
        keys.check_common(self)
        super()._set_default_parameters()
        if issubclass(self.model_class, FederatedRecommender):
            keys.check_bases(self)
            keys.check_compressors(self, self.compressors)
            self.federation(), self.local_training(), self.local_training(True)
            self.make_compressors()
            keys.check_federated(self)
            self._cut()
            keys.check_item_embedding(self, self._item_embedding_class)

    def _cut(self) -> None:
        """Let methods that do not compress meet the rate by doing less."""
        cut = {compressor.cuts for _, compressor in self.compressors.values()}
        key = cut.pop()
        if cut:
            name = self.method.replace("+", " and ")
            keys.refuse(self, "compressor", f"one that serves both ways, not {name}")
        if key is None:
            return
        if self["bandwidth"] is not None:
            keys.refuse(self, "bandwidth", f"None: {self.method} cuts {key} for all")
        left = kept(self["compression_rate"])
        if key == "epochs":
            self._cut_rounds(max(1, int(self[key] * left)))
        elif key == "client_fraction":
            self.final_config_dict[key] *= 1 - self["compression_rate"]
        else:
            if not self.model_class.resizable:
                allowed = f"another: {self.method} cannot cut the parts of {self.model}"
                keys.refuse(self, "compressor", allowed)
            bits = self.compressors["uplink"][1].value_bits
            embedding = self.make_item_embedding(1, self[key])
            if embedding is not None and embedding.width != self[key]:
                keys.refuse(self, "item_embedding", f"one that {self.method} can cut")
            self.final_config_dict[key] = max(1, int(self[key] * left * 32 / bits))

    def _cut_rounds(self, epochs: int) -> None:
        """Cut rounds, and evaluate as often as lets the last one be evaluated."""
        step = min(self["eval_step"], epochs)
        while step and epochs % step:
            step -= 1
        self.final_config_dict |= {"epochs": epochs, "eval_step": step}

    # Typed settings.

    def federation(self) -> Federation:
        """Return who takes part and how updates are combined."""
        return keys.federation(self)

    def local_training(self, warmup: bool = False) -> LocalTraining:
        """Return how clients train, in a warm-up or not."""
        return keys.local_training(self, warmup)

    @property
    def method(self) -> str:
        """Name of the compressor, or of the uplink's and the downlink's."""
        return "+".join(dict.fromkeys(name for name, _ in self.compressors.values()))

    def make_compressors(self) -> tuple[Compressor, Compressor]:
        """Build the uplink's and the downlink's compressor."""
        uplink, downlink = (
            methods.make_compressor(self, *self.compressors[direction])
            for direction in DIRECTIONS
        )
        return uplink, downlink

    @property
    def warmup_rounds(self) -> int:
        """Rounds that train the whole table first, for a base or codes; or 0."""
        warm = self._embedding_needs_source and self["item_base"] == "warmup"
        return int(self["warmup_rounds"]) if warm else 0

    @property
    def _embedding_needs_source(self) -> bool:
        return bool(self["use_base"] or self._item_embedding_class.fitted)

    def make_item_embedding(
        self, n_items: int, dim: int, source: NDArray[np.float32] | None = None
    ) -> ItemEmbedding | None:
        """Build what items are made of, see ``methods.make_item_embedding``."""
        kind = self._item_embedding_class
        return methods.make_item_embedding(self, kind, n_items, dim, source)

    def item_embedding_of(self, dataset: Any) -> ItemEmbedding | None:
        """Build it for a dataset, without a warm-up."""
        source = None
        if self["item_base"] == "features" and self._embedding_needs_source:
            source = item_features(dataset, self["item_features"])
        return self.make_item_embedding(
            dataset.item_num - 1, self["embedding_size"], source
        )


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
