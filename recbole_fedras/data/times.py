"""Times as numbers that keep their order exactly: whole, decimal, or ISO dates."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_DATE = r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?"
_ZONE = r"(?:Z|[+-]\d\d(?::?\d\d)?)"
_PATTERNS = {
    # A zone belongs to a time of day; without times, dates have none.
    True: re.compile(rf"{_DATE}{_ZONE})", re.ASCII),
    False: re.compile(rf"{_DATE})?", re.ASCII),
}

#: Numbers of so many digits float64 tells apart, whatever they are.
_SAFE_DIGITS = 15
_WHOLE = 2**53  # float64 holds all whole numbers up to here


class Dates:
    """ISO 8601 dates of one file, all with a zone or none, as nanoseconds.

    Attributes
    ----------
    zoned : bool or None
        None before the first.

    Examples
    --------
    >>> import pandas as pd
    >>> Dates().parse(pd.Series(["1970-01-02", "1970-01-01T00:00:01"]))
    (array([86400000000000,     1000000000]), None)
    >>> Dates().parse(pd.Series(["1970-01-02", "2 January"]))[1]
    1
    """

    def __init__(self) -> None:
        self.zoned: bool | None = None

    def parse(self, texts: pd.Series) -> tuple[NDArray[np.int64], int | None]:
        """Return nanoseconds since 1970, and the first row that is no such date."""
        column = texts.astype("category")
        names = column.cat.categories.to_series().astype(str)
        if self.zoned is None:
            self.zoned = _PATTERNS[True].fullmatch(str(texts.iloc[0])) is not None
        pattern = _PATTERNS[self.zoned]
        names = names.where(names.map(lambda name: bool(pattern.fullmatch(name))))
        dates = pd.to_datetime(names, format="ISO8601", utc=True, errors="coerce")
        codes = column.cat.codes.to_numpy()
        bad = dates.isna().to_numpy()[codes]
        row = int(bad.argmax()) if bad.any() else None
        return pd.DatetimeIndex(dates).as_unit("ns").asi8[codes], row


def first_inexact(values: pd.Series, texts: Callable[[], pd.Series]) -> int | None:
    """Return the first row whose number is not exactly what the file says.

    Parameters
    ----------
    values : Series of int64 or float64
    texts : callable
        Returns them as they stand in the file; called only where that is in doubt.
    """
    if values.dtype == np.int64:
        return None
    written = texts()
    for row in np.flatnonzero(written.str.len() > _SAFE_DIGITS):
        if Decimal(written.iloc[row]) != Decimal(repr(float(values.iloc[row]))):
            return int(row)
    return None


def join_times(parts: list[NDArray[np.int64] | NDArray[np.float64]]) -> pd.Series:
    """Concatenate; whole numbers stay whole where all are.

    Raises
    ------
    OverflowError
        If fractions stand beside whole numbers that float64 cannot hold.
    """
    whole = [part for part in parts if part.dtype == np.int64]
    large = any((abs(part) > _WHOLE).any() for part in whole)
    if large and len(whole) < len(parts):
        raise OverflowError
    return pd.Series(np.concatenate(parts))
