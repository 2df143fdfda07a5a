"""RecBole's dataset, read from atomic files, or a DataFrame, to the letter."""

from __future__ import annotations

import os
from typing import Any

import pandas as pd
from recbole.data.dataset import Dataset
from recbole.utils import FeatureSource, FeatureType

from recbole_fedras.data.atomic import AtomicFile
from recbole_fedras.data.frame import FRAME, Frame
from recbole_fedras.data.place import download
from recbole_fedras.data.settings import DataSettings
from recbole_fedras.errors import DataError


class AtomicDataset(Dataset):  # type: ignore[misc]
    """RecBole's ``Dataset``, whose files are read by :class:`AtomicFile`.

    Where the configuration has a DataFrame, :class:`Frame` reads that instead.

    Raises
    ------
    DataError
        If the atomic file is missing and RecBole knows no place to download it from,
        for a file that cannot be read, and for fields that are not there or of a type
        that they cannot have.
    """

    inter_feat: Any
    item_feat: Any

    @property
    def settings(self) -> DataSettings:
        """How interactions are read and split."""
        settings: DataSettings = self.config.data_settings()
        return settings

    def _load_data(self, token: str, dataset_path: str) -> None:
        if self.config.frame is not None:
            self._refuse_other_files()
        else:
            known = self._get_download_url("url", allow_none=True)
            if not os.path.exists(dataset_path) and known is None:
                raise _no_file(token, self._inter_paths(token, dataset_path)[0])
            self._refuse_filters_of_parts()
        super()._load_data(token, dataset_path)

    def _download(self) -> None:
        if self.config.frame is None:
            url = self._get_download_url("url")
            download(self.dataset_name, self.dataset_path, url)

    def _refuse_other_files(self) -> None:
        suffixes = set(self.config["load_col"] or {}) - {"inter"}
        for key, used in (
            ("benchmark_filename", self.benchmark_filename_list),
            ("additional_feat_suffix", self.config["additional_feat_suffix"]),
            ("load_col", suffixes),
        ):
            if used:
                raise DataError(
                    f"{key}={self.config[key]!r} is not allowed with a DataFrame, "
                    "which has no other files beside it; leave it out, or write "
                    "atomic files"
                )

    def _inter_paths(self, token: str, folder: str) -> list[str]:
        if self.config.frame is not None:
            return [FRAME]
        parts = self.benchmark_filename_list
        names = [""] if parts is None else [f".{part}" for part in parts]
        return [os.path.join(folder, f"{token}{name}.inter") for name in names]

    def _refuse_filters_of_parts(self) -> None:
        parts, filters = self.benchmark_filename_list, self.settings.filters
        if parts is not None and filters:
            key, value = next(iter(filters.items()))
            raise DataError(
                f"{key}={value!r} has no effect on benchmark_filename={parts!r}, whose "
                "files are used as they are; filter these files, or leave it out"
            )

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        """Read the file or the files of the parts, one behind the other."""
        paths = self._inter_paths(token, dataset_path)
        for path in paths:
            if self.config.frame is None and not os.path.isfile(path):
                raise _no_file(token, path)
        parts: Any = [
            self._load_feat(path, FeatureSource.INTERACTION) for path in paths
        ]
        self._require_fields(paths[0], parts[0])
        for path, part in zip(paths, parts, strict=True):
            if list(part) != list(parts[0]):
                raise DataError(
                    f"{path} has the fields {list(part)}, but {paths[0]} has "
                    f"{list(parts[0])}"
                )
        self.inter_feat = parts[0] if len(parts) == 1 else pd.concat(parts, axis=0)
        self.inter_feat.reset_index(drop=True, inplace=True)
        sizes = [len(part) for part in parts]
        self.file_size_list = sizes if len(sizes) == 3 else [sizes[0], 0, sizes[-1]]

    def _source(self, path: str) -> AtomicFile | Frame:
        if path == FRAME:
            return Frame(self.config.frame, (self.uid_field, self.iid_field))
        return AtomicFile(path, self.settings.form)

    def _require_fields(self, path: str, feat: Any) -> None:
        settings = self.settings
        loaded = [] if feat is None else list(feat)
        there = (
            f"fields loaded of {path}: {loaded}, of {list(self._source(path).types)}"
        )
        keys = {"USER_ID_FIELD": self.uid_field, "ITEM_ID_FIELD": self.iid_field}
        for key, field in keys.items():
            if field not in loaded:
                raise DataError(
                    f"{key}={field!r} is not among the {there}; set it to one of "
                    "these, and load_col, if you set that"
                )
        whole = self.benchmark_filename_list is None  # else the files are the split
        if settings.by_time and whole and self.time_field not in loaded:
            raise DataError(
                "eval_args goes by time (TO, TS), but TIME_FIELD="
                f"{self.time_field!r} is not among the {there}; set TIME_FIELD to one "
                "of these (and load_col, if you set that), or order to RO, which holds "
                "out rows at random"
            )

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        """Read a file's columns, as ``load_col`` and ``unload_col`` say."""
        load, unload = self._get_load_and_unload_col(source)
        if load == set():
            return None
        file = self._source(filepath)
        fields = [
            field
            for field in file.types
            if (load is None or field in load) and field not in (unload or ())
        ]
        if not fields:
            return None
        inter = source == FeatureSource.INTERACTION
        time = self.time_field if inter and self.time_field in fields else None
        for field in fields:
            self._set_type(file, field, source, field == time)
        required = {self.uid_field, self.iid_field}.intersection(fields)
        if inter:
            required |= {name for name in fields if file.types[name] == "float"}
            required |= {time} - {None}
        feat = file.read(fields, required, time)
        self._cut_sequences(feat)
        return feat

    def _set_type(
        self, file: AtomicFile | Frame, field: str, source: Any, is_time: bool
    ) -> None:
        """Note what RecBole goes by, once the type is one that the field can have."""
        kind = FeatureType(file.types[field])
        allowed = set(FeatureType)
        if field in (self.uid_field, self.iid_field):
            allowed = {FeatureType.TOKEN}
        elif is_time:
            allowed = {FeatureType.FLOAT, FeatureType.TOKEN}
        if kind not in allowed:
            names = " or ".join(sorted(kind.value for kind in allowed))
            raise DataError(
                f"{file.path}, line 1: '{field}:{kind.value}' cannot be used as "
                f"{'a time' if is_time else 'an id'}; its type must be {names}"
            )
        kind = FeatureType.FLOAT if is_time else kind
        known = self.field2type.setdefault(field, kind)
        if known != kind:
            raise DataError(
                f"{file.path}, line 1: field {field!r} is {kind.value}, but "
                f"{known.value} in another file of the dataset"
            )
        if source == "link":  # of knowledge graphs
            return
        self.field2source[field] = source
        if not kind.value.endswith("seq"):
            self.field2seqlen[field] = 1
        if kind.value.startswith("float"):
            self.field2bucketnum[field] = 2

    def _cut_sequences(self, feat: pd.DataFrame) -> None:
        for field in feat:
            if self.field2type[field].value.endswith("seq"):
                longest = max(map(len, feat[field]))
                most = (self.config["seq_len"] or {}).get(field, longest)
                feat[field] = [values[:most] for values in feat[field]]
                known = self.field2seqlen.get(field, 0)
                self.field2seqlen[field] = max(known, min(most, longest))


def _no_file(dataset: str, path: str) -> DataError:
    if dataset == FRAME:
        return DataError(
            f"dataset={FRAME!r} is what a pandas DataFrame given is called, which no "
            "folder of a run holds: give it again, as "
            "run_recbole_fedras(dataset=frame, ...) or load_run(folder, dataset=frame)"
        )
    return DataError(
        f"dataset={dataset!r}: there is no file {os.path.abspath(path)}; set data_path "
        "to the folder that holds the folder of the dataset, and benchmark_filename "
        "only for files that come split"
    )
