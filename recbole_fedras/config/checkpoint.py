"""Checkpoints: plain dictionaries that ``torch.load`` reads without trusting them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from recbole_fedras.errors import DataError


def plain(value: Any) -> Any:
    """Turn config values and results into types that YAML, JSON and torch.load read."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):  # before float: np.float64 is one
        return plain(value.item())
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return str(value)


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a state; a crash leaves the old one whole."""
    with replacing(path) as file:
        torch.save(state, file)


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a temporary file; at the end it is on the disk, and in the path's place.

    Whatever happens, also to the machine, the path has the old content or the new.
    Several processes may write at a time; the last one counts.

    Parameters
    ----------
    path : Path
    mode : int
        Of the file, before the process's umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names of a folder's files on the disk; on Windows they are."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what :func:`write_checkpoint` wrote.

    Raises
    ------
    DataError
        If there is no such file, or it is not one of our checkpoints.
    """
    if not Path(path).is_file():
        raise DataError(f"resume={str(path)!r}: there is no such file")
    try:
        state = torch.load(path, "cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many unrelated types
        raise DataError(f"resume={str(path)!r} is damaged or no checkpoint") from error
    if not isinstance(state, dict) or "simulation" not in state:
        raise DataError(f"resume={str(path)!r} is not a checkpoint of a federated run")
    if "shard" not in state["simulation"]:
        raise DataError(
            f"resume={str(path)!r} is of an earlier version, which kept server and "
            "clients together; finish the run with that version, or start anew"
        )
    return state


def file_of(path: str | Path) -> Path:
    """Return the checkpoint that is meant: of a run's folder, the newest."""
    return Path(path) / "last.pth" if Path(path).is_dir() else Path(path)


def best_of(path: str | Path) -> Path:
    """Return the checkpoint of the best round of the run that ``path`` is from.

    It stands beside the newest one; a run that was stopped before its first evaluation
    has none, and its newest is the best.
    """
    best = Path(path).with_name("best.pth")
    return best if best.is_file() else Path(path)
