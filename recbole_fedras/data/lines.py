"""Lines of an atomic file: its header read, the fields of every line counted."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, NoReturn, TextIO

import numpy as np

from recbole_fedras.errors import DataError

TYPES = ("token", "token_seq", "float", "float_seq")

#: Characters read at a time: some hundred thousand lines, so that a block costs pandas
#: little beyond its lines, and takes little memory beside a large dataset.
_BLOCK = 2**24


class Form(NamedTuple):
    """How files are written.

    Attributes
    ----------
    separator : str
        Between fields.
    seq_separator : str
        Within fields that are sequences.
    encoding : str
    """

    separator: str
    seq_separator: str
    encoding: str


class Block(NamedTuple):
    """Whole lines of a file, in UTF-8, and the number of the first."""

    line: int
    data: bytes


class Lines:
    """The lines of a file of one header line, ``field:type`` each, and one row a line.

    There is no quoting: a field is what stands between two separators. A byte order
    mark at the start is no part of the first field's name.

    Parameters
    ----------
    path : str
    form : Form

    Raises
    ------
    DataError
        For a header of another form, by file and line.

    Attributes
    ----------
    types : dict of str to str
        Of each field, in the file's order.
    mark : str
        The one byte that separates fields in blocks.
    """

    def __init__(self, path: str, form: Form) -> None:
        self.path, self.form = path, form
        single = len(form.separator) == 1 and form.separator.isascii()
        self.mark = form.separator if single else "\x1f"
        self.types = self._read_header()

    def refuse(self, block: Block, row: int, what: str) -> NoReturn:
        """Raise what is wrong with a row of a block, counted from 0."""
        raise DataError(f"{self.path}, line {block.line + row}: {what}")

    @contextmanager
    def _open(self) -> Iterator[TextIO]:
        encoding = self.form.encoding
        try:
            if codecs.lookup(encoding).name == "utf-8":
                encoding = "utf-8-sig"
            with open(self.path, encoding=encoding) as file:
                yield file
        except LookupError as error:
            raise DataError(
                f"encoding={self.form.encoding!r} is not an encoding that Python knows"
            ) from error
        except UnicodeError as error:
            raise DataError(
                f"{self.path}, line {self._undecodable_line()}: not in encoding="
                f"{self.form.encoding!r} ({error}); set encoding to that of the file, "
                "which must be text and not compressed"
            ) from error

    def _undecodable_line(self) -> int:
        decoder = codecs.getincrementaldecoder(self.form.encoding)()
        number = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):  # noqa: B007
                try:
                    decoder.decode(line)
                except UnicodeError:
                    break
        return number

    def _read_header(self) -> dict[str, str]:
        separator = self.form.separator
        for key, value in zip(
            ("field_separator", "seq_separator"), self.form[:2], strict=True
        ):
            if not value or "\n" in value:
                raise DataError(f"{key}={value!r} separates nothing")
        with self._open() as file:
            line = file.readline().rstrip("\n")
        types: dict[str, str] = {}
        for entry in line.split(separator):
            field, _, kind = entry.partition(":")
            if not field or field != field.strip() or kind not in TYPES:
                example = separator.join(["user_id:token", "item_id:token"])
                what = f"{entry[:80]!r} is no field:type" if line else "it is empty"
                raise DataError(
                    f"{self.path}, line 1: {what}; an atomic file begins with a line "
                    f"like {example!r}, of types {', '.join(TYPES)}, separated by "
                    f"field_separator={separator!r}; put one above what this one "
                    f"begins with, {line[:160]!r}, or give a pandas DataFrame"
                )
            if field in types:
                raise DataError(f"{self.path}, line 1: field {field!r} stands twice")
            types[field] = kind
        return types

    def blocks(self) -> Iterator[Block]:
        """Yield the lines below the header, once their fields are counted."""
        with self._open() as file:
            file.readline()
            line, empty = 2, ""  # empty lines at the end of the file are no rows
            while text := file.read(_BLOCK):
                text = empty + text + file.readline()
                rows = text.rstrip("\n")
                empty = text[len(rows) + bool(rows) :]
                if rows:
                    if self.mark != self.form.separator:
                        rows = rows.replace(self.form.separator, self.mark)
                    block = Block(line, (rows + "\n").encode())
                    self._check_counts(block)
                    yield block
                    line += rows.count("\n") + 1

    def _check_counts(self, block: Block) -> None:
        """Every n-th mark, and no other, must be the end of a line."""
        chars = np.frombuffer(block.data, np.uint8)
        zeros = np.flatnonzero(chars == 0)
        if len(zeros):
            row = int((chars[: zeros[0]] == ord("\n")).sum())
            self.refuse(block, row, "a byte of value 0; this is no text file")
        marks = np.flatnonzero((chars == ord(self.mark)) | (chars == ord("\n")))
        ends = np.flatnonzero(chars[marks] == ord("\n"))
        n, counts = len(self.types), np.diff(ends, prepend=-1)
        wrong = np.flatnonzero(counts != n)
        if len(wrong):
            row = int(wrong[0])
            if not block.data.split(b"\n")[row]:
                self.refuse(
                    block, row, "an empty line; only the last lines may be empty"
                )
            what = "every line has" if (counts == counts[0]).all() else "there are"
            number = f"{counts[row]} fields" if counts[row] > 1 else "no separators"
            self.refuse(
                block,
                row,
                f"{what} {number}, but the header has {n} fields, "
                f"{', '.join(self.types)}; fields are separated by field_separator="
                f"{self.form.separator!r}, and there is no quoting",
            )
