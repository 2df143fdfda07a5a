"""Tables: rows of values, shown as Markdown, LaTeX or HTML and written as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tabulate import tabulate

Row = Mapping[str, Any]

#: How numbers of a column are shown; the first pattern that fits its name counts.
FORMATS = {
    "p": ".2g", "p adjusted": ".2g", "effect": "+.2f",
    "difference": "+.4f", "* - first": "+.4f",
    "CR allowed": ".4%", "CR*": ".2%", "ids": ".1%", "framing": ".1%",
    "hours*": ",.4g", "late": ",.1f", "dropped": ",.1f", "client joules": ",.4g",
    "client peak MB": ",.2f", "up to": ",.4g",
    "model MB": ".2f", "* MB": ",.1f", "seconds": ",.1f", "bytes/item": ".2f",
    "error": ".2e", "learning rate": "g", "weight decay": "g", "regret": "+.4f",
    "*": ".4f",
}  # fmt: skip

#: What a deviation's column is called, after that of the mean it is shown with.
SPREAD = " sd"

#: The same, of the ends of its interval.
LOW, HIGH = " low", " high"


#: What stands for no value.
_LACKING = (None, "")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title, with a note beneath; any may lack a value (None).

    Examples
    --------
    >>> rows = [{"method": "SVD", "hit@10": 0.5, "hit@10 sd": 0.01, "p": 2e-19}]
    >>> print(Table("Ours", rows).shown("github"))
    | method   | hit@10          | p     |
    |----------|-----------------|-------|
    | SVD      | 0.5000 ± 0.0100 | 2e-19 |
    """

    title: str
    rows: Sequence[Row]
    note: str = ""

    def shown(self, style: str) -> str:
        """Render the rows, in one of tabulate's styles, without columns of no words."""
        keys = [
            key
            for key in self.rows[0]
            if not key.endswith((SPREAD, LOW, HIGH))
            and any(row[key] != "" for row in self.rows)
        ]
        lines = [
            {key: _shown(key, row[key]) + _spread(row, key) for key in keys}
            for row in self.rows
        ]
        return str(
            tabulate(lines, headers="keys", tablefmt=style, disable_numparse=True)
        )

    def markdown(self) -> str:
        """Title, rows and note, as text."""
        parts = (self.title, self.shown("github"), self.note)
        return "\n\n".join(filter(None, parts)) + "\n"

    def latex(self) -> str:
        """Title and note as comments, rows as a ``tabular`` of booktabs."""
        title, note = (
            f"% {said}\n" if said else "" for said in (self.title, self.note)
        )
        return f"{title}{self.shown('latex_booktabs')}\n{note}"

    def csv(self) -> str:
        """Values as they are, in full."""
        written = io.StringIO()
        writer = csv.DictWriter(written, self.rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return written.getvalue()

    def printed(self, style: str) -> str:
        """Return what is printed: ``markdown``, ``latex`` or ``csv``."""
        shown: str = getattr(self, style)()
        return shown

    def write(self, folder: Path, style: str = "markdown") -> None:
        """Write ``table.md``, ``table.csv`` and ``table.tex``; print one of them."""
        self.write_files(folder, "table")
        print(self.printed(style), end="")

    def write_files(self, folder: Path, name: str) -> None:
        """Write ``.md``, ``.csv`` and ``.tex`` of a name."""
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, shown in (
            ("md", self.markdown()),
            ("tex", self.latex()),
            ("csv", self.csv()),
        ):
            (folder / f"{name}.{suffix}").write_text(shown, encoding="utf-8")


def _spread(row: Row, key: str) -> str:
    value, low, high = (row.get(key + end) for end in (SPREAD, LOW, HIGH))
    shown = "" if value in _LACKING else f" ± {value:{_style(key, row[key])}}"
    if low in _LACKING or high in _LACKING:
        return shown
    return f"{shown} [{low:{_style(key, low)}}, {high:{_style(key, high)}}]"


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in ("p", "p adjusted") and value == 0:
        return "< 1e-300"  # too small for a float
    return format(value, _style(key, value)) if isinstance(value, float) else str(value)


def _style(key: str, value: float) -> str:
    style = next(style for name, style in FORMATS.items() if fnmatchcase(key, name))
    if 0 < abs(value) < 0.05 and style == ",.1f":
        return ".1g"
    small = style.endswith(".4f") and 0 < abs(value) < 1e-3
    return style.replace(".4f", ".2e") if small else style
