"""RecBole's dataset with exact time order, and with checks before any work starts."""

from __future__ import annotations

from itertools import combinations
from logging import getLogger
from typing import Any

import numpy as np
import pandas as pd

from recbole_fedras.data.catalogue import Catalogue
from recbole_fedras.data.clients import ClientData
from recbole_fedras.data.loading import AtomicDataset
from recbole_fedras.errors import DataError

_PARTS = ("training", "validation", "test")

#: RecBole's steps in its order, and the keys that they read.
_FILTERS = {
    "_remove_duplication": ("rm_dup_inter",),
    "_filter_by_field_value": ("val_interval",),
    "_filter_inter_by_user_or_item": ("filter_inter_by_user_or_item",),
    "_filter_by_inter_num": ("user_inter_num_interval", "item_inter_num_interval"),
}

_LEAVE_ONE_OUT_PARTS = {"valid_and_test": 3, "test_only": 2}


class FederatedDataset(AtomicDataset):
    """RecBole's ``Dataset``, of which three things differ.

    Its atomic files are read by :class:`AtomicFile`, to the letter. Rows keep the order
    of the file, and are ordered by exact times, before RecBole turns these into
    float32, which cannot tell unix seconds less than 64 apart. And what RecBole passes
    over in silence is an error: missing files, ids, numbers or time field, filters that
    leave nothing or that it does not apply, users with too few interactions for the
    split, held-out rows that are training rows too.

    Raises
    ------
    DataError
        For data that cannot be read, or that the configured split cannot use.
    """

    #: Whether items' features are the server's, and not to be looked for here.
    features_are_elsewhere = False

    # Filters. They leave rows in the order of the file, and their times as they are.

    def _data_filtering(self) -> None:
        filters = self.settings.filters
        for step, keys in _FILTERS.items():
            values = {key: filters[key] for key in keys if key in filters}
            if not values and step != "_filter_inter_by_user_or_item":
                continue
            before = len(self.inter_feat)
            getattr(self, step)()
            self._tell_what_is_left(before, values or {keys[0]: True})
        self._reset_index()

    def _tell_what_is_left(self, before: int, keys: dict[str, Any]) -> None:
        after = len(self.inter_feat)
        told = " and ".join(f"{key}={value!r}" for key, value in keys.items())
        if not after:
            raise DataError(
                f"dataset={self.dataset_name!r}: no interactions are left after {told}"
            )
        if after < before:
            getLogger().info(f"{told}: {after} of {before} interactions are left")

    def _remove_duplication(self) -> None:
        """Keep the earliest or latest row of each pair; ``tied_times`` breaks ties."""
        keep = self.settings.filters.get("rm_dup_inter")
        if keep is None:
            return
        rows = self._by_time(self.inter_feat)
        kept = rows.drop_duplicates([self.uid_field, self.iid_field], keep=keep)
        self.inter_feat = kept.sort_index()

    def _by_time(self, rows: pd.DataFrame) -> pd.DataFrame:
        if self.time_field not in rows:
            return rows
        if self.settings.first_tie_is_latest:
            rows = rows[::-1]
        return rows.sort_values(self.time_field, kind="stable")

    def _normalize(self) -> None:
        """Let times be ranks before anything is computed of them."""
        if self.time_field in self.inter_feat:
            times = self.inter_feat[self.time_field].to_numpy()
            _, ranks = np.unique(times, return_inverse=True)
            self.inter_feat[self.time_field] = 1.0 + ranks
        super()._normalize()

    # Splitting.

    def build(self) -> Any:
        """Split as ``eval_args`` says, by exact times, or as the files are."""
        if self.benchmark_filename_list is None:
            self._require_interactions()
            if self.settings.by_time:  # RecBole's own sorting then moves no row
                self.inter_feat = self._by_time(self.inter_feat)
        elif not self.settings.keep_overlap:
            self._require_distinct_parts()
        self._require_negatives()
        return super().build()

    def time_based_split(self, ratios: list[float], group_by: str) -> Any:
        """Split as RecBole does, which takes rows to be ordered, whatever the order."""
        self.sort(by=self.time_field)
        return super().time_based_split(ratios, group_by)

    def _require_negatives(self) -> None:
        users = self.inter_feat[self.uid_field].to_numpy()
        counts, n_items = np.bincount(users), self.item_num - 1
        for user in np.flatnonzero(counts >= n_items):
            items = self.inter_feat[self.iid_field][users == user]
            if items.nunique() == n_items:
                raise DataError(
                    f"user {self._token(self.uid_field, user)} interacted with all "
                    f"{n_items} items, so that there are no negatives to draw for it; "
                    "leave it out with user_inter_num_interval"
                )

    def _token(self, field: str, number: int) -> str:
        return repr(str(self.id2token(field, number)))

    def _require_distinct_parts(self) -> None:
        feat = self.inter_feat
        pairs = feat[self.uid_field].to_numpy() * self.item_num
        pairs = pairs + feat[self.iid_field].to_numpy()
        bounds = np.cumsum(self.file_size_list)
        parts = np.split(pairs, bounds[:-1])
        for (a, first), (b, second) in combinations(enumerate(parts), 2):
            common = np.flatnonzero(np.isin(second, first))
            if len(common):
                user, item = divmod(int(second[common[0]]), self.item_num)
                raise DataError(
                    f"{len(common)} rows of the {_PARTS[b]} file are in the "
                    f"{_PARTS[a]} file too, first line {common[0] + 2}: user "
                    f"{self._token(self.uid_field, user)}, item "
                    f"{self._token(self.iid_field, item)}; take them out of "
                    "one, or set presplit_overlap=keep"
                )

    def _require_interactions(self) -> None:
        settings = self.settings
        needed = _LEAVE_ONE_OUT_PARTS.get(settings.leave_out or "")
        if settings.keep_short_users or needed is None:
            return
        counts = self.inter_feat[self.uid_field].value_counts()
        short = counts[counts < needed]
        if len(short):
            user = self._token(self.uid_field, short.index[0])
            raise DataError(
                f"eval_args split LS={settings.leave_out!r} needs {needed} "
                f"interactions of every user, but {len(short)} of {len(counts)} users "
                f"have fewer (user {user}: {short.iloc[0]}); drop them with "
                f'user_inter_num_interval="[{needed},inf)", or set short_users=keep'
            )


def client_data(train_dataset: Any) -> ClientData:
    """Group a RecBole training dataset by client; ids count from 0, without [PAD]."""
    feat = train_dataset.inter_feat
    for field in (train_dataset.uid_field, train_dataset.iid_field):
        if len(feat) and int(feat[field].min()) < 1:
            raise DataError(f"an interaction has no {field!r}, which is [PAD] there")
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
