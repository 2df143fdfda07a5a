"""Items of a catalogue and what files say of them, without anybody's interactions."""

from __future__ import annotations

from typing import Any

import pandas as pd
from recbole.utils import FeatureSource, FeatureType

from recbole_fedras.data.catalogue import Catalogue
from recbole_fedras.data.loading import AtomicDataset


class ItemData(AtomicDataset):
    """A dataset whose only user knows every item of a catalogue, in its order.

    For a server, which has files of items and none of interactions. Items of its files
    that are not in the catalogue are left out.

    Parameters
    ----------
    config : recbole.config.Config
    catalogue : Catalogue
    """

    features_are_elsewhere = False

    def __init__(self, config: Any, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        super().__init__(config)
        self._change_feat_format()

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        for field in (self.uid_field, self.iid_field):
            self.field2type[field] = FeatureType.TOKEN
            self.field2source[field] = FeatureSource.INTERACTION
            self.field2seqlen[field] = 1
        tokens = self._catalogue.tokens
        self.inter_feat = pd.DataFrame({self.uid_field: "-", self.iid_field: tokens})

    def _load_data(self, token: str, dataset_path: str) -> None:
        super()._load_data(token, dataset_path)
        if self.item_feat is not None:
            known = self.item_feat[self.iid_field].isin(self._catalogue.tokens)
            self.item_feat = self.item_feat[known].reset_index(drop=True)

    def _data_filtering(self) -> None:
        """Leave all: nobody's interactions are here to be filtered."""
