"""Atomic files, RecBole's tables of typed fields: read to the letter, or refused."""

from __future__ import annotations

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Collection
from io import BytesIO
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import union_categoricals

from recbole_fedras.data.lines import Block, Form, Lines
from recbole_fedras.data.times import Dates, first_inexact, join_times
from recbole_fedras.errors import DataError

_NUMBER = re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *", re.ASCII)
#: Others are text. Of numbers pandas finds out whether all are whole, or none is one:
#: asked for floats, it would take True for 1.
_DTYPES = {"token": "category", "float": None}


class AtomicFile:
    """A file of typed fields.

    Only the empty field is missing; ``NA``, ``null`` or ``nan`` are tokens like others.

    Parameters
    ----------
    path : str
    form : Form

    Raises
    ------
    DataError
        For whatever stands in the file and cannot be read, by file, line and field.

    Attributes
    ----------
    types : dict of str to str
        Of each field, in the file's order.
    """

    def __init__(self, path: str, form: Form) -> None:
        self._lines = Lines(path, form)
        self.path, self.types = path, self._lines.types

    def read(
        self, fields: Collection[str], required: Collection[str], time: str | None
    ) -> pd.DataFrame:
        """Return columns; tokens as categories, sequences as arrays.

        Parameters
        ----------
        fields : collection of str
            What to read.
        required : collection of str
            Fields that may not be empty.
        time : str, optional
            Field of times, tokens or floats; int64 where they are whole or dates.
        """
        dtypes: dict[str, str | None] = {
            field: _DTYPES.get(self.types[field], "str") for field in fields
        }
        columns: dict[str, list[Any]] = {field: [] for field in fields}
        dates = Dates()
        for block in self._lines.blocks():
            frame = self._to_frame(block, dtypes)
            self._require_values(block, frame, required)
            for field in fields:
                values = frame.pop(field)
                if self.types[field] == "float":
                    values = self._numbers(block, field, values)
                if field == time:
                    values = self._times(block, field, values, dates)
                elif self.types[field].endswith("seq"):
                    values = self._sequences(block, field, values)
                columns[field].append(values)
        if not next(iter(columns.values())):
            raise DataError(f"{self.path} is empty below its header: no rows")
        return pd.DataFrame(
            {
                field: self._join(field, columns.pop(field), field == time)
                for field in fields
            },
            copy=False,
        )

    def _to_frame(self, block: Block, dtypes: dict[str, str | None]) -> pd.DataFrame:
        data = block.data
        if data.startswith(BOM_UTF8):  # of which pandas drops one, though it is an id's
            data = BOM_UTF8 + data
        return pd.read_csv(
            BytesIO(data),
            sep=self._lines.mark,
            header=None,
            names=list(self.types),
            usecols=list(dtypes),
            dtype={field: kind for field, kind in dtypes.items() if kind},
            index_col=False,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            na_values=[""],
            float_precision="round_trip",
            skip_blank_lines=False,
            lineterminator="\n",
            low_memory=False,
        )

    def _texts(self, block: Block, field: str) -> pd.Series:
        return self._to_frame(block, {field: "str"})[field]

    def _require_values(
        self, block: Block, frame: pd.DataFrame, required: Collection[str]
    ) -> None:
        for field in frame.columns.intersection(list(required)):
            missing = frame[field].isna().to_numpy()
            if missing.any():
                what = f"field '{field}:{self.types[field]}' is empty; take the row out"
                self._lines.refuse(block, int(missing.argmax()), what)

    def _numbers(self, block: Block, field: str, values: pd.Series) -> pd.Series:
        """Return int64 if all are whole, else float64; refuse what is no number."""
        if values.dtype in (np.int64, np.float64) and not np.isinf(values).any():
            return values
        for row, text in enumerate(self._texts(block, field)):
            if isinstance(text, str) and not _is_number(text):
                self._refuse_value(block, row, field, text)
        return values.astype(np.float64)  # beyond int64

    def _times(
        self, block: Block, field: str, values: pd.Series, dates: Dates
    ) -> NDArray[Any]:
        if self.types[field] == "token":
            nanoseconds, row = dates.parse(values)
            if row is not None:
                self._lines.refuse(
                    block,
                    row,
                    f"TIME_FIELD={field!r} is of type token and {values.iloc[row]!r} "
                    "is not an ISO date, as 2026-01-31 or 2026-01-31T12:00:00, all "
                    "with a zone or none; write it so, as pandas.to_datetime does, "
                    f"call numbers {field}:float, or leave it out of load_col",
                )
            return nanoseconds
        row = first_inexact(values, lambda: self._texts(block, field))
        if row is not None:
            self._lines.refuse(
                block,
                row,
                f"TIME_FIELD={field!r} has more digits than float64 can tell apart; "
                "write times as whole numbers without a point, of nanoseconds for "
                "instance",
            )
        numbers: NDArray[Any] = values.to_numpy()
        return numbers

    def _sequences(self, block: Block, field: str, values: pd.Series) -> list[Any]:
        separator = self._lines.form.seq_separator
        floats = self.types[field] == "float_seq"
        gaps = floats and not separator.isspace()  # of which each is a missing number
        parts = [
            [part for part in text.split(separator) if part or (gaps and text)]
            for text in values.fillna("")
        ]
        if not floats:
            return [np.array(part, dtype=str) for part in parts]
        found = [_numbers(part) for part in parts]
        for row, numbers in enumerate(found):
            if numbers is None:
                wrong = next(part for part in parts[row] if not _is_number(part))
                self._refuse_value(block, row, field, wrong)
        return found

    def _join(self, field: str, parts: list[Any], is_time: bool) -> Any:
        if is_time:
            try:
                return join_times(parts)
            except OverflowError as error:
                raise DataError(
                    f"{self.path}: TIME_FIELD={field!r} has fractions beside whole "
                    "numbers above 2^53, which float64 cannot tell apart"
                ) from error
        if self.types[field] == "token":
            return union_categoricals([part.array for part in parts])
        if self.types[field] == "float":
            return np.concatenate(parts, dtype=np.float64)
        return pd.Series([row for part in parts for row in part], dtype=object)

    def _refuse_value(self, block: Block, row: int, field: str, text: str) -> NoReturn:
        what = f"field '{field}:{self.types[field]}' is {text[:80]!r}"
        self._lines.refuse(
            block,
            row,
            f"{what}, which is not a finite number; numbers have a point, and other "
            "values, ISO dates too, are of type token",
        )


def _numbers(texts: list[str]) -> NDArray[np.float64] | None:
    """Return finite numbers; None if one is no number, of which Python takes more."""
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        return None
    odd = any("_" in text or not text.isascii() for text in texts)
    return None if odd or not np.isfinite(numbers).all() else numbers


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and bool(np.isfinite(float(text)))
