"""A pandas DataFrame of interactions, taken as its atomic file would be, or refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_datetime64_any_dtype, is_float_dtype, is_integer_dtype

from recbole_fedras.data.times import Dates
from recbole_fedras.errors import DataError

#: What a dataset that is given as a DataFrame is called.
FRAME = "DataFrame"


class Frame:
    """A DataFrame in place of an atomic file.

    Columns of users and items are tokens whatever their type, ``str`` of each value;
    others are numbers where pandas has them as such, else tokens.

    Parameters
    ----------
    frame : DataFrame
        Not changed.
    ids : collection of str
        Columns of users and items.

    Raises
    ------
    DataError
        For whatever stands in it and cannot be used, by row, counted from 0, and
        column.

    Attributes
    ----------
    types : dict of str to str
        Of each column, in the frame's order.

    Examples
    --------
    >>> frame = pd.DataFrame({"user_id": [7, 7], "item_id": ["x", "y"]})
    >>> read = Frame(frame, ["user_id"]).read(["user_id"], ["user_id"], time=None)
    >>> read["user_id"].tolist()
    ['7', '7']
    """

    path = FRAME

    def __init__(self, frame: pd.DataFrame, ids: Collection[str]) -> None:
        names = [str(name) for name in frame.columns]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"{FRAME}: column {name!r} stands twice")
        self._frame = frame.set_axis(names, axis=1, copy=False)
        self.types = {
            name: "float" if name not in ids and _is_number(column) else "token"
            for name, column in self._frame.items()
        }

    def read(
        self, fields: Collection[str], required: Collection[str], time: str | None
    ) -> pd.DataFrame:
        """Return columns as :meth:`AtomicFile.read` does.

        Parameters
        ----------
        fields : collection of str
            What to read.
        required : collection of str
            Fields that may not be missing.
        time : str, optional
            Field of times: numbers, dates of pandas' or Python's, or ISO dates.
        """
        if self._frame.empty:
            raise DataError(f"{FRAME} is empty: no rows")
        read: dict[str, Any] = {}
        for field in fields:
            values = self._frame[field].reset_index(drop=True)
            if field in required:
                self._require(field, values.isna().to_numpy())
            if field == time:
                read[field] = self._times(field, values)
            elif self.types[field] == "float":
                read[field] = self._numbers(field, values).astype(np.float64)
            else:
                read[field] = self._tokens(field, values)
                if field in required:
                    self._require(field, read[field].isna())
        return pd.DataFrame(read, copy=False)

    def _tokens(self, field: str, values: pd.Series) -> pd.Categorical:
        """Return ``str`` of each value; no two values may become one token."""
        if values.dtype == object:
            kinds = sorted({type(value).__name__ for value in values.dropna()})
            if len(kinds) > 1 or "bytes" in kinds:
                raise _no_ids(field, f"of type {', '.join(kinds)}")
        try:
            codes, found = pd.factorize(values)
        except TypeError as error:
            raise _no_ids(field, f"that are no ids ({error})") from error
        tokens = [str(value) for value in found]
        if len(set(tokens)) < len(tokens):
            raise _no_ids(field, "of which two are written alike")
        return pd.Categorical.from_codes(codes, tokens).remove_categories(
            [""] if "" in tokens else []
        )

    def _numbers(self, field: str, values: pd.Series) -> NDArray[Any]:
        """Return int64 if all are whole, else float64; refuse what is not finite."""
        if is_integer_dtype(values.dtype) and not values.isna().any():
            if values.max() > np.iinfo(np.int64).max:
                row = int(values.to_numpy().argmax())
                self._refuse(field, row, f"is {values[row]}, beyond int64")
            whole: NDArray[np.int64] = values.to_numpy(np.int64)
            return whole
        numbers: NDArray[np.float64] = values.to_numpy(np.float64, na_value=np.nan)
        infinite = np.isinf(numbers)
        if infinite.any():
            self._refuse(field, int(infinite.argmax()), "is not finite")
        return numbers

    def _times(self, field: str, values: pd.Series) -> NDArray[Any]:
        if self.types[field] == "float":
            return self._numbers(field, values)
        if is_datetime64_any_dtype(values.dtype):
            try:
                nanoseconds: NDArray[Any] = pd.DatetimeIndex(values).as_unit("ns").asi8
            except pd.errors.OutOfBoundsDatetime as error:
                raise DataError(f"{FRAME}: TIME_FIELD={field!r}: {error}") from error
            return nanoseconds
        texts = values.map(str)
        nanoseconds, row = Dates().parse(texts)
        if row is not None:
            self._refuse(
                field,
                row,
                f"is {texts[row]!r}, which is not an ISO date, as 2026-01-31 or "
                "2026-01-31T12:00:00, all with a zone or none; make times numbers or "
                "dates, as by pandas.to_datetime, or leave them out of load_col",
            )
        return nanoseconds

    def _require(self, field: str, missing: NDArray[np.bool_]) -> None:
        if missing.any():
            self._refuse(field, int(missing.argmax()), "is missing")

    def _refuse(self, field: str, row: int, what: str) -> NoReturn:
        raise DataError(f"{FRAME}, row {row}: {field!r} {what}")


def _no_ids(field: str, which: str) -> DataError:
    return DataError(
        f"{FRAME}: column {field!r} has values {which}; make them all strings, or all "
        "whole numbers"
    )


def _is_number(column: pd.Series) -> bool:
    return bool(is_integer_dtype(column.dtype) or is_float_dtype(column.dtype))
