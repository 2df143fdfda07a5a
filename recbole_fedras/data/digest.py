"""Digests of files: by these, changed data are told from those of an earlier run."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def digest_of_files(paths: Sequence[Path]) -> str | None:
    """Digest names and contents; None if there are no files."""
    digest = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                content.update(block)
        digest.update(f"{path.name} {content.hexdigest()}\n".encode())
    return digest.hexdigest()[:20] if paths else None


def digest_of_dataset(folder: str, name: str) -> str | None:
    """Digest a dataset's atomic files; None if there are none."""
    found = Path(folder).glob(f"{glob.escape(name)}.*")
    return digest_of_files(sorted(path for path in found if path.is_file()))


def digest_of_frame(frame: pd.DataFrame) -> str:
    """Digest names and values of columns, whatever the index."""
    digest = hashlib.sha256(repr(list(frame.columns)).encode())
    digest.update(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return digest.hexdigest()[:20]
