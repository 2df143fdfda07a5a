"""Forms that a value may have: each says what is allowed, and reads it as one type."""

from __future__ import annotations

import codecs
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Generic, TypeVar

import numpy as np

#: What YAML 1.1, command lines and people write for True and False.
_BOOLEANS = {
    "true": True, "yes": True, "on": True, "false": False, "no": False, "off": False,
}  # fmt: skip

_LEVELS = ("debug", "info", "warning", "error", "critical")
_NUMBER = r"\s*[-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_INTERVALS = re.compile(rf"\s*[\[(]{_NUMBER},{_NUMBER}[\])]\s*")


Value = TypeVar("Value")


@dataclass(frozen=True)
class Form(Generic[Value]):
    """What a key's value may be.

    Attributes
    ----------
    allowed : str
        For error messages.
    read : callable
        Returns a value as it is used. Raises ValueError or TypeError for what is not
        allowed.
    verbatim : bool
        Whether an argument is taken as it is written, also where it looks like a
        number.
    """

    allowed: str
    read: Callable[[Any], Value]
    verbatim: bool = False


def natural(value: Any) -> Any:
    """Return numpy's values, tuples and paths as numbers, lists and strings."""
    if isinstance(value, dict):
        return {natural(key): natural(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [natural(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return natural(value.tolist())
    return str(value) if isinstance(value, PurePath) else value


def like(value: Any, default: Any) -> Any:
    """Return a value as the type of its default, where it only is written otherwise.

    A whole float is an integer, and no, off or false are False.

    Examples
    --------
    >>> like(32.0, 8), like("off", True), like([64.0], [32, 16]), like(0.5, 8)
    (32, False, [64], 0.5)
    """
    if isinstance(default, bool):
        return _BOOLEANS.get(value.lower(), value) if isinstance(value, str) else value
    if isinstance(default, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(default, list) and default and isinstance(value, list):
        return [like(entry, default[0]) for entry in value]
    return value


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def _boolean(value: Any) -> bool:
    _require(type(value) is bool)
    return bool(value)


def _string(value: Any) -> str:
    _require(isinstance(value, str) and value != "")
    return str(value)


def _name(value: Any) -> str:
    """Read a name or a folder; one of digits is a number in YAML."""
    return _string(str(value) if type(value) is int else value)


def _names(value: Any) -> list[str]:
    value = [value] if isinstance(value, str) else value
    _require(isinstance(value, list))
    return [_name(entry) for entry in value]


def _level(value: Any) -> str:
    _require(_string(value).lower() in _LEVELS)
    return str(value)


def _encoding(value: Any) -> str:
    try:
        codecs.lookup(_string(value))
    except LookupError as error:
        raise ValueError from error
    return str(value)


def _intervals(value: Any) -> str:
    """Read intervals; a closed one may be written as a list."""
    if isinstance(value, list):
        value = str(value)
    parts = _string(value).split(";")
    _require(all(_INTERVALS.fullmatch(part) for part in parts))
    return str(value)


def _interval_or_tokens(value: Any) -> Any:
    tokens = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return value if tokens else _intervals(value)


def _columns(value: Any) -> Any:
    return value if value == "*" else _names(value)


def _gpus(value: Any) -> str:
    """Read what CUDA_VISIBLE_DEVICES takes."""
    value = value if isinstance(value, list) else [value]
    _require(all(type(entry) in (int, str) for entry in value))
    return ",".join(map(str, value))


def integer(at_least: int, at_most: int = 2**62) -> Form[int]:
    """Whole numbers between bounds."""

    def read(value: Any) -> int:
        value = like(value, at_least)
        _require(type(value) is int and at_least <= value <= at_most)
        return int(value)

    return Form(f"an integer from {at_least} to {at_most}", read)


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float."""
    return type(value) in (int, float) and bool(np.isfinite(value))


def number(
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Form[float]:
    """Finite numbers between bounds."""
    bounds = [
        (above, ">", operator.gt),
        (at_least, ">=", operator.ge),
        (below, "<", operator.lt),
        (at_most, "<=", operator.le),
    ]
    used = [(bound, sign, holds) for bound, sign, holds in bounds if bound is not None]

    def read(value: Any) -> float:
        _require(is_number(value) and all(holds(value, b) for b, _, holds in used))
        return float(value)

    signs = " and ".join(f"{sign} {bound}" for bound, sign, _ in used)
    return Form(f"a number {signs}", read)


def one_of(*values: str) -> Form[str]:
    """Return the form of a choice."""

    def read(value: Any) -> str:
        _require(value in values)
        return str(value)

    return Form(f"one of {', '.join(values)}", read)


def optional(form: Form[Value]) -> Form[Value | None]:
    """Return a form that None has too."""
    return Form(
        f"{form.allowed}, or ~",
        lambda value: None if value is None else form.read(value),
        form.verbatim,
    )


def several(
    form: Form[Value], allowed: str, sizes: Collection[int] = ()
) -> Form[list[Value]]:
    """Return the form of lists, of certain sizes or of one entry and more."""

    def read(value: Any) -> list[Value]:
        value = value if isinstance(value, list) else [value]
        _require(len(value) in sizes if sizes else len(value) > 0)
        return [form.read(entry) for entry in value]

    return Form(allowed, read)


def mapping(entry: Form[Value], allowed: str) -> Form[dict[str, Value]]:
    """Return the form of dicts from names."""

    def read(value: Any) -> dict[str, Value]:
        _require(isinstance(value, dict))
        return {_name(key): entry.read(item) for key, item in value.items()}

    return Form(allowed, read)


ANYTHING: Form[Any] = Form("anything", lambda value: value)
BOOLEAN = Form("True or False", _boolean)
#: The same, as people write it, for keys whose default is none and so does not tell.
YES_OR_NO = Form("True or False", lambda value: _boolean(like(value, True)))
STRING = Form("a string", _string)
NAME = Form("a name", _name, verbatim=True)
NAMES = Form("a list of names", _names)
FOLDER = Form("a folder", _name, verbatim=True)
ENCODING = Form("an encoding that Python knows, as utf-8 or gbk", _encoding)
INTERVALS = Form('an interval, as "[5,inf)", several joined by ;', _intervals, True)
KEPT = Form("an interval in quotes, or a list of tokens", _interval_or_tokens)
COLUMNS = Form("a list of fields", _columns)
LEVEL = Form("one of debug, info, warning, error, critical", _level)
GPUS = Form("numbers of GPUs, joined by commas", _gpus)
SEED = integer(0, 2**32 - 1)
