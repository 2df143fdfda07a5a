"""Which source of a key wins: defaults, YAML files by name, files, dict, arguments."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from recbole.config import Config as RecBoleConfig

from recbole_fedras.config import (
    build,
    compat,
    given_keys,
    methods,
    recbole_keys,
    registry,
    splits,
)
from recbole_fedras.config.checkpoint import file_of, plain, read_checkpoint
from recbole_fedras.config.forms import like, natural
from recbole_fedras.config.sources import Loader, read_arguments
from recbole_fedras.data.frame import FRAME
from recbole_fedras.data.place import folder_of
from recbole_fedras.errors import ConfigError
from recbole_fedras.model import FederatedRecommender


class MergedConfig(RecBoleConfig):  # type: ignore[misc]
    """RecBole's ``Config``, filled from the sources that are named; strict about keys.

    Parameters and attributes are those of :class:`recbole_fedras.config.Config`.
    """

    external_config_dict: dict[str, Any]
    internal_config_dict: dict[str, Any]

    def __init__(
        self,
        model: Any = None,
        dataset: str | pd.DataFrame | None = None,
        config_file_list: Sequence[str] | None = None,
        config_dict: dict[str, Any] | None = None,
        argv: Sequence[str] = (),
    ) -> None:
        self._argv = argv
        config_dict = dict(config_dict or {})
        if dataset is None and isinstance(config_dict.get("dataset"), pd.DataFrame):
            dataset = config_dict.pop("dataset")
        self.frame: pd.DataFrame | None = None
        if isinstance(dataset, pd.DataFrame):
            self.frame, dataset = dataset, FRAME
        self._named = {
            key: value
            for key, value in (("model", model), ("dataset", dataset))
            if isinstance(value, str) or (key == "dataset" and value is not None)
        }
        self.parts = methods.NO_PARTS
        self._declared: set[str] = set()
        self._known: set[str] = set()
        self._config_files = list(config_file_list or [])
        with self.in_use(), compat.errors_as(ConfigError, "configuration"):
            super().__init__(
                model, dataset, config_file_list, copy.deepcopy(config_dict)
            )
            self._known |= self.final_config_dict.keys()

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
        with (
            compat.recbole(),
            compat.metrics(dict(self.parts.metrics), self._make_metric),
            registry.importable(self._config_files),
        ):
            yield

    @staticmethod
    def _make_metric(name: str, found: type, config: MergedConfig) -> Any:
        """Make a metric for RecBole."""
        return build.make(config, "metric", name, found, config)

    # What RecBole calls, in this order.

    def compatibility_settings(self) -> None:
        """Nothing: ``recbole_fedras.config.compat`` does it, for today's numpy."""

    def _build_yaml_loader(self) -> type[Loader]:
        """Return a loader of our own; RecBole's changes yaml's for everybody."""
        return Loader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        """Read strings as Python literals, like RecBole, but without ``eval``."""
        return {
            key: given_keys.unquoted(key, value) if isinstance(value, str) else value
            for key, value in config_dict.items()
        }

    def _load_config_files(self, file_list: Sequence[str] | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for file in file_list or []:
            values = registry.read_yaml(file, self.yaml_loader)
            self._declare(values)
            merged = self._merge(merged, values)
        return merged

    def _load_cmd_line(self) -> dict[str, Any]:
        return self._convert_config_dict(read_arguments(self._argv))

    def _merge_external_config_dict(self) -> None:
        given: dict[str, Any] = {}
        self._declare(self.variable_config_dict)
        for source in (
            self.file_config_dict,
            self.variable_config_dict,
            self.cmd_config_dict,
            self._named,
        ):
            given = self._merge(given, natural(source))
        if given.get("resume"):
            given["resume"] = str(file_of(given["resume"]))
            saved = read_checkpoint(given["resume"])["config"]
            saved = _before_presets(saved) | saved
            self._declare(saved)
            wanted, given = given, self._merge(self._merge({}, saved), given)
            given_keys.refuse_changes({key: given[key] for key in wanted}, saved)
        self.external_config_dict = given

    def _merge(self, older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
        """Put keys over others; a class goes with the name that it came with."""
        merged = splits.layer(older, newer)
        for kind in (*registry.GIVEN, *build.COMPRESSOR_KEYS):
            renamed = newer.get(kind, older.get(kind)) != older.get(kind)
            if renamed and f"{kind}_class" not in newer:
                if kind in older:
                    merged.pop(f"{kind}_class", None)
                elif f"{kind}_class" in older:
                    shipped = "compressor" if kind in build.COMPRESSOR_KEYS else kind
                    path = older[f"{kind}_class"]
                    registry.require_free(shipped, kind, newer[kind], path)
        return merged

    def _declare(self, source: dict[str, Any]) -> None:
        """Let a file or dict that names a model's class have keys of that model's."""
        shipped = registry.read_properties("model", str(source.get("model")))
        if source.get("model_class") not in (None, shipped.get("model_class")):
            self._declared |= source.keys()

    def _get_model_and_dataset(self, model: Any, dataset: Any) -> tuple[str, Any, str]:
        given = self.external_config_dict
        overall = registry.read_properties(".", "overall")
        preset = registry.read_preset(given.get("preset"))
        if given.get("model_class") and not given.get("model"):
            given["model"] = str(given["model_class"]).rpartition(".")[2]
        model = model or given.get("model") or preset.get("model") or overall["model"]
        dataset = given_keys.dataset_name(given.get("dataset"), overall["dataset"])
        if not isinstance(model, str | type):
            raise ConfigError(f"model={model!r} is not allowed; it must be a name")
        if not isinstance(model, str):
            return model.__name__, model, dataset
        return model, build.find_model(model, given.get("model_class")), dataset

    def _load_internal_config_dict(
        self, model: str, model_class: Any, dataset: str
    ) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        recbole = self.internal_config_dict
        overall = registry.read_properties(".", "overall")
        given = self.external_config_dict
        preset = registry.read_preset(given.get("preset"), model)
        for kind in build.NAMED_KINDS:
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
        taken = taken | of_model.keys() | of_items.keys()
        of_methods = self._keys_of_compressors(taken)
        self.parts = methods.find_parts(chosen)
        of_methods |= self.parts.keys(taken | of_methods.keys())
        of_dataset = registry.read_properties("dataset", dataset)
        self._own = {*of_model, *of_items, *of_methods}
        layers = [overall, of_items, of_methods, recbole]
        if federated:
            layers = [recbole, overall, of_model, of_items, preset, of_methods]
            layers.append(of_dataset)
        self.internal_config_dict = {
            key: value for keys in layers for key, value in keys.items()
        }
        splits.follow_fields(self.internal_config_dict, recbole, given)
        self._refuse_unknown_keys()
        self._read_values(federated)

    def _read_values(self, federated: bool) -> None:
        """Complete dicts, and give every value the type that it is used as."""
        given = splits.layer(self.internal_config_dict, self.external_config_dict)
        for key in self.external_config_dict:
            value = like(given[key], self.internal_config_dict.get(key))
            if federated and key not in self._own:
                value = recbole_keys.read(key, value)
            self.external_config_dict[key] = value

    def _keys_of_compressors(self, taken: set[str]) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for name, compressor_class in self.compressors.values():
            keys |= build.own_keys("compressor", name, compressor_class, taken)
        for key in ("compressor", "compressor_class"):  # of one; the names say which
            keys.pop(key, None)
        return keys

    def _refuse_unknown_keys(self) -> None:
        kinds = (*registry.GIVEN, *build.COMPRESSOR_KEYS)
        self._known = {*self.internal_config_dict, *self._declared}
        self._known |= recbole_keys.KEYS.keys() | recbole_keys.WITHOUT_EFFECT.keys()
        self._known |= {f"{kind}_class" for kind in kinds}
        of_others = registry.keys_by_name()  # files may have several
        self._known |= of_others.keys()
        read = self.internal_config_dict.keys() | self._declared
        self.unused = {
            key: ", ".join(of_others[key])
            for key, value in self.external_config_dict.items()
            if key in of_others.keys() - read and value not in of_others[key].values()
        }
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
        if issubclass(self.model_class, FederatedRecommender):
            splits.check(self)
        data_path = self.final_config_dict["data_path"]
        with self.in_use():  # the metrics are known by now
            super()._set_default_parameters()
        self.final_config_dict["data_path"] = folder_of(self.dataset, data_path)


def _before_presets(saved: dict[str, Any]) -> dict[str, Any]:
    """Return defaults of what a saved run's preset has come to set since."""
    overall = registry.read_properties(".", "overall")
    preset = registry.read_preset(saved.get("preset"), saved.get("model"))
    return {key: overall[key] for key in preset if key in overall}
