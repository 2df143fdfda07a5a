"""Where a dataset is: below ``data_path``, in RecBole's wheel, or to be downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import recbole
from recbole.utils.url import download_url, extract_zip, rename_atomic_files

from recbole_fedras.errors import DataError

#: File in a downloaded dataset's folder that says where it is from.
SOURCE = "downloaded_from.txt"


#: Datasets that ship with RecBole: ml-100k.
_SHIPPED = Path(recbole.__file__).parent / "dataset_example"


def folder_of(dataset: str, data_path: str) -> str:
    """Return a dataset's folder: below ``data_path``, else RecBole's own copy.

    RecBole overrules ``data_path`` for what ships with it.
    """
    ships = (_SHIPPED / dataset).is_dir()
    here = os.path.join(data_path, dataset)
    unset = os.path.normpath(data_path) == "dataset"
    if ships and not os.path.isdir(here) and (unset or os.path.isdir(data_path)):
        return str(_SHIPPED / dataset)
    return here


def require_folder(dataset: str, folder: str) -> None:
    """Refuse a ``data_path`` that is not there, rather than download a shipped copy.

    Raises
    ------
    DataError
    """
    if (_SHIPPED / dataset).is_dir() and not os.path.isdir(folder):
        raise DataError(
            f"dataset={dataset!r}: there is no folder {folder!r}; set data_path to the "
            "folder that holds it, or leave it out for the copy that ships with RecBole"
        )


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
