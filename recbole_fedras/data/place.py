"""Where a dataset is: below ``data_path``, in RecBole's wheel, or to be downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

from recbole.utils.url import download_url, extract_zip, rename_atomic_files

from recbole_fedras.errors import DataError

#: File in a downloaded dataset's folder that says where it is from.
SOURCE = "downloaded_from.txt"


def folder_of(dataset: str, data_path: str, recboles: str) -> str:
    """Return a dataset's folder; RecBole overrules ``data_path`` for ml-100k.

    Parameters
    ----------
    dataset, data_path : str
    recboles : str
        Folder that RecBole has chosen.

    Raises
    ------
    DataError
        If there is no folder ``data_path``, although somebody has set one.
    """
    here = os.path.join(data_path, dataset)
    ships = os.path.isdir(recboles)
    if os.path.isdir(here) or not ships:
        return here
    if not os.path.isdir(data_path) and os.path.normpath(data_path) != "dataset":
        raise DataError(
            f"dataset={dataset!r}: there is no folder data_path={data_path!r}; leave "
            "data_path out for the copy that ships with RecBole"
        )
    return recboles


def origin(folder: str) -> str:
    """Say where a dataset's files are, and where they were downloaded from."""
    note = Path(folder, SOURCE)
    if note.is_file():
        return f"{folder}, downloaded from {note.read_text(encoding='utf-8').strip()}"
    return folder


def download(dataset: str, folder: str, url: str) -> None:
    """Fetch a dataset that RecBole knows; its folder is there when it is whole.

    Raises
    ------
    DataError
        If that fails.
    """
    parent = Path(folder).resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".download-", dir=parent) as temporary:
        whole = Path(temporary) / dataset
        try:
            archive = Path(download_url(url, str(whole)))
            extract_zip(str(archive), str(whole))
        except (OSError, BadZipFile, RuntimeError, TypeError) as error:
            raise DataError(
                f"dataset={dataset!r} could not be downloaded from {url}: {error}; try "
                "again, or set data_path to the folder that holds the dataset's folder"
            ) from error
        archive.unlink()
        rename_atomic_files(str(whole), archive.stem, dataset)
        (whole / SOURCE).write_text(f"{url}\n", encoding="utf-8")
        os.replace(whole, folder)
