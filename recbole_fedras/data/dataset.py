"""RecBole's dataset with exact time order, and with checks before any work starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from recbole.data.dataset import Dataset
from recbole.utils import FeatureType

from recbole_fedras.data.catalogue import Catalogue
from recbole_fedras.data.clients import ClientData
from recbole_fedras.data.place import download
from recbole_fedras.errors import DataError

_LEAVE_ONE_OUT_PARTS = {"valid_and_test": 3, "test_only": 2}


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How interactions are read and split.

    Attributes
    ----------
    user_field, item_field : str
    by_time : bool
        Whether a user's interactions are ordered by time.
    leave_out : str or None
        Which of a user's last interactions are held out, in RecBole's words; None for
        a split by shares.
    keep_short_users : bool
        Whether users with too few interactions for that stay.
    first_tie_is_latest : bool
        Which row of a user's equal times counts as the latest: the first, or the last.
    """

    user_field: str
    item_field: str
    by_time: bool
    leave_out: str | None
    keep_short_users: bool
    first_tie_is_latest: bool


class FederatedDataset(Dataset):  # type: ignore[misc]
    """RecBole's ``Dataset``, of which two things differ.

    Times are replaced by their rank before RecBole turns them into float32, which
    cannot tell unix seconds less than 64 apart. And what RecBole passes over in
    silence is an error: missing files or time field, NaN ratings, users with too few
    interactions for the split.

    Raises
    ------
    DataError
        If the atomic file is missing and RecBole knows no place to download it from,
        and for data that the configured split cannot use.
    """

    inter_feat: Any

    def _load_data(self, token: str, dataset_path: str) -> None:
        path = os.path.join(dataset_path, f"{token}.inter")
        whole = self.benchmark_filename_list is None
        if whole and not os.path.isfile(path):
            known = self._get_download_url("url", allow_none=True)
            if os.path.exists(dataset_path) or known is None:
                raise DataError(
                    f"dataset={token!r}: there is no file {os.path.abspath(path)}; "
                    "set data_path to the folder that holds the folder of the dataset"
                )
        super()._load_data(token, dataset_path)
        settings = self.config.data_settings()
        fields = {
            "USER_ID_FIELD": settings.user_field,
            "ITEM_ID_FIELD": settings.item_field,
        }
        for key, field in fields.items():
            if self.inter_feat is None or field not in self.inter_feat:
                loaded = [] if self.inter_feat is None else list(self.inter_feat)
                raise DataError(
                    f"{key}={field!r} is not among the fields loaded from "
                    f"the .inter file: {loaded}; set it and load_col to fields of it"
                )
        self._require_time_field()

    def _download(self) -> None:
        url = self._get_download_url("url")
        download(self.dataset_name, self.dataset_path, url)

    def _require_time_field(self) -> None:
        by_time = self.config.data_settings().by_time
        if by_time and self.time_field not in self.inter_feat:
            raise DataError(
                f"eval_args orders by time (TO), but TIME_FIELD={self.time_field!r} is "
                f"not among the fields loaded: {list(self.inter_feat)}; set TIME_FIELD "
                "and load_col to a field of the file, or order to RO"
            )

    def _data_filtering(self) -> None:
        for field in self.inter_feat:
            if self.field2type[field] == FeatureType.FLOAT:
                missing = self.inter_feat.index[self.inter_feat[field].isna()]
                if len(missing):
                    raise DataError(
                        f"field {field!r} of dataset={self.dataset_name!r} is missing "
                        f"or NaN in {len(missing)} rows, first in line "
                        f"{missing[0] + 2} of the .inter file"
                    )
        super()._data_filtering()

    def build(self) -> Any:
        """Split as ``eval_args`` says, by exact times."""
        rows = self.inter_feat
        if self.time_field in rows:
            whole = self.benchmark_filename_list is None  # not split by files
            if self.config.data_settings().first_tie_is_latest and whole:
                rows = rows[::-1].reset_index(drop=True)  # sorting keeps ties' order
            rows[self.time_field] = rows[self.time_field].rank(method="dense")
            self.inter_feat = rows
        self._require_interactions()
        return super().build()

    def _require_interactions(self) -> None:
        settings = self.config.data_settings()
        needed = _LEAVE_ONE_OUT_PARTS.get(settings.leave_out or "")
        by_files = self.benchmark_filename_list is not None
        if settings.keep_short_users or needed is None or by_files:
            return
        counts = self.inter_feat[self.uid_field].value_counts()
        short = counts[counts < needed]
        if len(short):
            user = self.id2token(self.uid_field, short.index[0])
            raise DataError(
                f"eval_args split LS={settings.leave_out!r} needs {needed} "
                f"interactions of every user, but {len(short)} of {len(counts)} users "
                f"have fewer (user {str(user)!r}: {short.iloc[0]}); drop them with "
                f'user_inter_num_interval="[{needed},inf)", or set short_users=keep'
            )


def client_data(train_dataset: Any) -> ClientData:
    """Group a RecBole training dataset by client; ids count from 0, without [PAD]."""
    feat = train_dataset.inter_feat
    return ClientData.from_pairs(
        feat[train_dataset.uid_field].numpy() - 1,
        feat[train_dataset.iid_field].numpy() - 1,
        train_dataset.user_num - 1,
        train_dataset.item_num - 1,
    )


def catalogue_of(dataset: Any) -> Catalogue:
    """Return the items of a RecBole dataset by token, numbered as it numbers them."""
    tokens = dataset.id2token(dataset.iid_field, range(1, dataset.item_num))
    return Catalogue([str(token) for token in tokens])
