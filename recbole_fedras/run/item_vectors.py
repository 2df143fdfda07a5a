"""Files of item vectors: what other tools read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.errors import ConfigError, DataError

Floats = NDArray[np.float32]


def write_item_vectors(
    path: str | Path, tokens: Sequence[str], vectors: Floats
) -> None:
    """Write vectors by token, in the form that the file's suffix says.

    Parameters
    ----------
    path : str or Path
        ``.npz``: numpy's, with ``tokens`` (n,) and ``vectors`` (n, dim). ``.txt``: the
        text format of word2vec, which gensim reads.
    tokens : sequence of str
    vectors : ndarray of float32, shape (n, dim)

    Raises
    ------
    ConfigError
        For another suffix, and if the file cannot be written.
    DataError
        For a token that ``.txt`` cannot hold.
    """
    write = _WRITERS.get(Path(path).suffix)
    if write is None:
        raise ConfigError(
            f"{str(path)!r} is not allowed; it must end in {' or '.join(_WRITERS)}"
        )
    try:
        write(Path(path), tokens, vectors)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error}") from error


def _write_npz(path: Path, tokens: Sequence[str], vectors: Floats) -> None:
    np.savez(path, tokens=np.array(tokens, str), vectors=vectors)


def _write_text(path: Path, tokens: Sequence[str], vectors: Floats) -> None:
    for token in tokens:
        if re.search(r"\s", token):
            raise DataError(
                f"item {token!r} has a blank, which ends a word in {path}; write .npz"
            )
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{len(tokens)} {vectors.shape[1]}\n")
        for token, vector in zip(tokens, vectors.tolist(), strict=True):
            file.write(f"{token} {' '.join(f'{value:.9g}' for value in vector)}\n")


_WRITERS: dict[str, Callable[[Path, Sequence[str], Floats], None]] = {
    ".npz": _write_npz,
    ".txt": _write_text,
}
