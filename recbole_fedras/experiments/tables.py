"""Tables: rows of values, shown as Markdown, LaTeX or HTML and written as CSV."""

from __future__ import annotations

import csv
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

    def write(self, folder: Path) -> None:
        """Write ``table.md``, ``table.csv`` and ``table.tex``; print the first."""
        self.write_files(folder, "table")
        print(self.markdown(), end="")

    def write_files(self, folder: Path, name: str) -> None:
        """Write ``.md``, ``.csv`` and ``.tex`` of a name."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(self.markdown(), encoding="utf-8")
        latex = f"% {self.title}\n{self.shown('latex_booktabs')}\n"
        (folder / f"{name}.tex").write_text(latex, encoding="utf-8")
        write_csv(folder / f"{name}.csv", self.rows)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write values as they are, in full."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _spread(row: Row, key: str) -> str:
    value, low, high = (row.get(key + end) for end in (SPREAD, LOW, HIGH))
    shown = "" if value is None else f" ± {value:{_style(key, row[key])}}"
    if low is None or high is None:
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
