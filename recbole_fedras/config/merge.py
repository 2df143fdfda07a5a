"""Configuration: RecBole's, with our defaults, strict keys and typed settings."""

from __future__ import annotations

import ast
import copy
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from recbole.config import Config as RecBoleConfig

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import build, compat, methods, registry, rules, schema
from recbole_fedras.config.checkpoint import plain, read_checkpoint
from recbole_fedras.config.cut import cut
from recbole_fedras.config.settings import EvaluationSettings, RunSettings
from recbole_fedras.data.dataset import DataSettings
from recbole_fedras.data.features import item_features
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.federation.simulation import Methods
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.model.settings import ModelSettings
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
    ConfigError
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
        self._known: set[str] = set()
        self._config_files = list(config_file_list or [])
        with self.in_use(), compat.errors_as(ConfigError, "configuration"):
            super().__init__(
                model, dataset, config_file_list, copy.deepcopy(config_dict or {})
            )
            self._known |= self.final_config_dict.keys()
            self._settle()

    def _settle(self) -> None:
        """Check what is federated, and set what follows from other keys."""
        final = self.final_config_dict
        federated = issubclass(self.model_class, FederatedRecommender)
        # RecBole ignores use_gpu; binary codes are optimised by compiled code only.
        if not final["use_gpu"] or (federated and self.model_class.binary):
            final["device"] = torch.device("cpu")
        if federated:
            rules.check_bases(self)
            rules.check_compressors(self, self.compressors)
            self.federation(), self.local_training(), self.local_training(True)
            self.make_compressors()
            rules.check_federated(self)
            final.update(cut(self))
            rules.check_item_embedding(self, self._item_embedding_class)

    def __getitem__(self, key: str) -> Any:
        """Return a key's value; one that is unknown is an error, not None.

        RecBole's own code may ask for what nobody sets.

        Raises
        ------
        ConfigError
            That names the nearest key.
        """
        if key in self.final_config_dict:
            return self.final_config_dict[key]
        if key in self._known or compat.package_of(sys._getframe(1)) == "recbole":
            return None
        raise self._unknown(key)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Give RecBole its shims, and let users' modules be imported, for a while."""
        with compat.recbole(), registry.importable(self._config_files):
            yield

    # What RecBole calls, in this order.

    def compatibility_settings(self) -> None:
        """Nothing: ``recbole_fedras.config.compat`` does it, for today's numpy."""

    def _build_yaml_loader(self) -> type[yaml.SafeLoader]:
        """Return a loader of our own; RecBole's changes yaml's for everybody."""
        return _Loader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Read strings as Python literals, like RecBole, but without ``eval``."""
        return {
            key: _literal(value) if isinstance(value, str) else value
            for key, value in config_dict.items()
        }

    def _load_config_files(self, file_list: Sequence[str] | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for file in file_list or []:
            merged = self._merge(merged, registry.read_yaml(file, self.yaml_loader))
        return merged

    def _load_cmd_line(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for argument in self._argv:
            key, equals, value = argument.removeprefix("--").partition("=")
            if not (argument.startswith("--") and key and equals):
                raise ConfigError(f"argument {argument!r} must read --key=value")
            if values.get(key, value) != value:
                raise ConfigError(f"argument --{key} stands twice with other values")
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
        if given.get("resume"):
            saved = read_checkpoint(given["resume"])["config"]
            _refuse_changes(given, saved)
            given = self._merge(self._merge({}, saved), given)
        self.external_config_dict = given

    def _merge(self, older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
        """Put ``newer`` over ``older``; a class goes with the name that it came with.

        A source that names a model's class declares that model's own keys.
        """
        shipped = registry.read_properties("model", str(newer.get("model")))
        if newer.get("model_class") not in (None, shipped.get("model_class")):
            self._declared |= newer.keys()
        merged = older | newer
        for kind in (*registry.GIVEN, *build.COMPRESSOR_KEYS):
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
            raise ConfigError(f"model={model!r} is not allowed; it must be a name")
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
            raise ConfigError(
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
        for kind in ("compressor", "item_embedding", "aggregation", "replica"):
            if f"{kind}_class" in given and kind not in given:
                given[kind] = str(given[f"{kind}_class"]).rpartition(".")[2]
        federated = issubclass(model_class, FederatedRecommender)
        taken = {*overall, *(key for keys in self.parameters.values() for key in keys)}
        of_model: dict[str, Any] = {}
        if federated:
            of_model = build.own_keys("model", model, model_class, taken)
        chosen = overall | of_model | preset | given
        self.compressor_name = str(chosen["compressor"])
        self.compressors = build.find_compressors(chosen)
        self._item_embedding_class = build.find_item_embedding(chosen)
        of_items = {"use_base": False} | build.own_keys(
            "item_embedding",
            str(chosen["item_embedding"]),
            self._item_embedding_class,
            taken,
        )
        own = self._keys_of_compressors(taken | of_model.keys() | of_items.keys())
        self.parts = methods.find_parts(chosen)
        own |= self.parts.keys(taken | of_model.keys() | of_items.keys() | own.keys())
        of_dataset = registry.read_properties("dataset", dataset)
        layers = [overall, of_items, own, recbole]
        if federated:
            layers = [recbole, overall, of_model, of_items, preset, own, of_dataset]
        self.internal_config_dict = {
            key: value for layer in layers for key, value in layer.items()
        }
        self._refuse_unknown_keys()

    def _keys_of_compressors(self, taken: set[str]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        for name, compressor_class in self.compressors.values():
            own |= build.own_keys("compressor", name, compressor_class, taken)
        own.pop("compressor_class", None)  # of one of them; the names say which
        return own

    def _preset(self, name: str | None) -> dict[str, Any]:
        valid = list(registry.names("preset"))
        if name is not None and name not in valid:
            raise ConfigError(
                f"preset={name!r} is unknown; {registry.nearest(str(name), valid)}"
                f"known: {', '.join(valid)}"
            )
        return registry.read_properties("preset", name) if name else {}

    def _refuse_unknown_keys(self) -> None:
        kinds = (*registry.GIVEN, *build.COMPRESSOR_KEYS)
        self._known = {*self.internal_config_dict, *_RECBOLE_KEYS, *self._declared}
        self._known |= {f"{kind}_class" for kind in kinds}
        for kind in registry.GIVEN:  # files may have several
            for name in registry.names(kind):
                self._known |= registry.read_properties(kind, name).keys()
        self._known |= {key for keys in self.parameters.values() for key in keys}
        for key in self.external_config_dict:
            if key not in self._known:
                raise self._unknown(key)

    def _unknown(self, key: str) -> ConfigError:
        near = registry.nearest(key, sorted(self._known))
        return ConfigError(
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
        rules.check_common(self)
        super()._set_default_parameters()

    # Typed settings.

    def federation(self) -> Federation:
        """Return who takes part and how updates are combined."""
        return schema.federation(self)

    def local_training(self, warmup: bool = False) -> LocalTraining:
        """Return how clients train, in a warm-up or not."""
        return schema.local_training(self, warmup)

    def model_settings(self) -> ModelSettings:
        """Return what every model is made with."""
        return schema.model_settings(self, self.warmup_rounds)

    def data_settings(self) -> DataSettings:
        """Return how interactions are read and split."""
        return schema.data_settings(self)

    def run_settings(self) -> RunSettings:
        """Return what is run, where, and what it leaves behind."""
        return schema.run_settings(self, self.resolved)

    def evaluation_settings(self) -> EvaluationSettings:
        """Return how quality is measured."""
        return schema.evaluation_settings(self)

    # Objects.

    def make_model(self, dataset: Any) -> Any:
        """Build the model for a RecBole dataset."""
        return build.make_model(self, dataset)

    @property
    def method(self) -> str:
        """Name of the compressor, or of the uplink's and the downlink's."""
        return "+".join(dict.fromkeys(name for name, _ in self.compressors.values()))

    def make_compressors(self) -> tuple[Compressor, Compressor]:
        """Build the uplink's and the downlink's compressor."""
        uplink, downlink = (
            build.make_compressor(self, *self.compressors[direction])
            for direction in DIRECTIONS
        )
        return uplink, downlink

    def make_methods(self) -> Methods:
        """Build the parts of a round, compressors among them."""
        return methods.make_methods(self)

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
        """Build what items are made of, see ``build.make_item_embedding``."""
        kind = self._item_embedding_class
        return build.make_item_embedding(self, kind, n_items, dim, source)

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


def _refuse_changes(given: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse to resume a run with keys by which it would be another."""
    for key in given.keys() - _RESUMABLE:
        if plain(given[key]) != saved.get(key):
            raise ConfigError(
                f"{key}={given[key]!r} cannot change when resuming: the run was "
                f"started with {saved.get(key)!r}"
            )


class _Loader(yaml.SafeLoader):
    """YAML whose numbers may have an exponent without a point, as 1e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
