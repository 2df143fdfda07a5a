"""Configuration: RecBole's with strict keys, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import build, given_keys, methods, private, rules, schema
from recbole_fedras.config.cut import cut
from recbole_fedras.config.merge import MergedConfig
from recbole_fedras.config.settings import (
    DeploymentSettings,
    EvaluationSettings,
    RunSettings,
)
from recbole_fedras.data.features import item_features
from recbole_fedras.data.settings import DataSettings
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.federation.simulation import Methods
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.model.settings import ModelSettings
from recbole_fedras.wire.ledger import DIRECTIONS


class Config(MergedConfig):
    """RecBole's ``Config`` with our defaults beneath the user's values.

    For federated models the order is, later over earlier: RecBole's defaults, our
    ``overall.yaml``, ``model/``, ``item_embedding/``, ``preset/``, ``compressor/`` and
    ``dataset/``, each a YAML file of the name chosen; then config files,
    ``config_dict``, command line.
    For RecBole's own models RecBole's defaults win over ours.

    Parameters
    ----------
    model, dataset, config_file_list, config_dict
        As in RecBole; ``dataset`` may be a DataFrame of interactions.
    argv : sequence of str
        Command line arguments ``--key=value``; never taken from ``sys.argv``.

    Raises
    ------
    ConfigError
        For unknown keys and for values that are not allowed, by name.

    Attributes
    ----------
    frame : DataFrame or None
        The dataset, if it was given as one.
    compressors : dict of str to tuple
        Name and class of the ``uplink``'s and the ``downlink``'s compressor.
    resolved : dict
        Every key and value that defines the run, as plain types, before RecBole adds
        derived ones; a run started from it alone is the same run.

    Examples
    --------
    >>> config = Config("MF", "ml-100k", config_dict={"compressor": "SVD"})
    >>> config["epochs"], config.method, config.federation().client_fraction
    (400, 'SVD', 0.1)
    >>> Config(argv=["--epoch=5"])
    Traceback (most recent call last):
    recbole_fedras.errors.ConfigError: unknown config key 'epoch'; did you mean ...
    """

    def __init__(
        self,
        model: Any = None,
        dataset: str | pd.DataFrame | None = None,
        config_file_list: Sequence[str] | None = None,
        config_dict: dict[str, Any] | None = None,
        argv: Sequence[str] = (),
    ) -> None:
        super().__init__(model, dataset, config_file_list, config_dict, argv)
        with self.in_use():
            self._settle()

    def _settle(self) -> None:
        """Check what is federated, and set what follows from other keys."""
        final = self.final_config_dict
        federated = issubclass(self.model_class, FederatedRecommender)
        if not final["use_gpu"]:  # which RecBole ignores
            final["device"] = torch.device("cpu")
        if federated:
            rules.check_bases(self)
            rules.check_methods(self)
            self.federation(), self.local_training(), self.local_training(True)
            self.make_methods(), self.deployment_settings()
            rules.check_federated(self)
            private.check_privacy(self)
            private.check_secure_aggregation(self)
            final.update(cut(self))
            rules.check_item_embedding(self, self._item_embedding_class)

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

    def deployment_settings(self) -> DeploymentSettings:
        """Return what a deployment needs beside a run's settings."""
        return schema.deployment_settings(self)

    def evaluation_settings(self) -> EvaluationSettings:
        """Return how quality is measured."""
        return schema.evaluation_settings(self)

    # Objects.

    def make_model(self, dataset: Any) -> Any:
        """Build the model for a RecBole dataset."""
        return build.make_model(self, dataset)

    @property
    def changed(self) -> dict[str, Any]:
        """Keys given with other values than the defaults; what a run is known by.

        Model, dataset, compressors and where classes are go without saying, and so does
        how a run is carried out.

        Examples
        --------
        >>> Config(argv=["--epochs=400", "--alpha=0.4", "--n_jobs=1"]).changed
        {'alpha': 0.4}
        """
        return given_keys.changed(
            self.external_config_dict, self.internal_config_dict, self.resolved
        )

    @property
    def method(self) -> str:
        """Name of the compressor, or of the uplink's and the downlink's."""
        return "+".join(dict.fromkeys(name for name, _ in self.compressors.values()))

    @property
    def obeys_rate(self) -> bool:
        """Whether the compression rate makes any difference to the run.

        Examples
        --------
        >>> config = Config(config_dict={"compressor": "none"})
        >>> config.obeys_rate, Config(config_dict={"compressor": "RSC"}).obeys_rate
        (False, True)
        """
        bound = any(found.obeys_rate() for _, found in self.compressors.values())
        return bound or bool(self["cut"]) or self.parts.replica[1].on_grid

    def make_compressors(self) -> tuple[Compressor, Compressor]:
        """Build the uplink's and the downlink's compressor."""
        uplink, downlink = (
            build.make_compressor(self, *self.compressors[direction])
            for direction in DIRECTIONS
        )
        return uplink, downlink

    def make_methods(self, dataset: Any = None) -> Methods:
        """Build the parts of a round, compressors among them.

        Clients need to know the dataset: an attack may be aimed at items of it.
        """
        return methods.make_methods(self, dataset)

    @property
    def warmup_rounds(self) -> int:
        """Rounds that train the whole table first, for a base or codes; or 0."""
        warm = self._embedding_needs_source and self["item_base"] == "warmup"
        return int(self["warmup_rounds"]) if warm else 0

    @property
    def needs_features(self) -> bool:
        """Whether what items are made of is found from their features."""
        return self["item_base"] == "features" and self._embedding_needs_source

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
        """Build it for a dataset, without a warm-up.

        What features say is missing where they are elsewhere: it comes by a message.
        """
        source = None
        if self.needs_features and not dataset.features_are_elsewhere:
            source = item_features(dataset, self["item_features"])
        return self.make_item_embedding(
            dataset.item_num - 1, self["embedding_size"], source
        )
