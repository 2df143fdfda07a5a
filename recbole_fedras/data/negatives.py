"""Files of fixed negatives, as the NCF repository publishes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from recbole_fedras.errors import DataError


class Line(NamedTuple):
    """A held-out interaction, and what it is to be ranked among, by token.

    Attributes
    ----------
    where : str
        File and line, for error messages.
    user, item : str
    negatives : list of str
    """

    where: str
    user: str
    item: str
    negatives: list[str]


def read_negatives(path: str | Path, encoding: str) -> Iterator[Line]:
    r"""Yield lines ``(user,item)\tnegative\tnegative...``, separated by tabs.

    Raises
    ------
    DataError
        If there is no such file, and for a line that reads otherwise.
    """
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    try:
        text = Path(path).read_text(encoding=encoding)
    except FileNotFoundError as error:
        raise DataError(f"eval_candidates='file': there is no file {path}") from error
    except UnicodeError as error:
        raise DataError(f"{path}: not in encoding={encoding!r} ({error})") from error
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        pair, *negatives = line.split("\t")
        user, comma, item = pair.removeprefix("(").removesuffix(")").partition(",")
        in_brackets = pair.startswith("(") and pair.endswith(")")
        if not (in_brackets and user and comma and item and all(negatives)):
            raise DataError(
                f"{path}, line {number}: it must read (user,item) and then negatives, "
                f"separated by tabs, but begins with {line[:80]!r}"
            )
        yield Line(f"{path}, line {number}", user, item.strip(), negatives)
