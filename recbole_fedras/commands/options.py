"""Options that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from recbole_fedras.errors import ConfigError
from recbole_fedras.run.stages import stage

Value = TypeVar("Value")


def loading() -> AbstractContextManager[None]:
    """Say that what a command needs is being imported, which takes seconds."""
    return stage("loading RecBole and torch")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Say how many runs go at a time, and whether finished ones are kept."""
    parser.add_argument(
        "--jobs", type=int, default=-1, help="runs at a time (default: one per core)"
    )
    parser.add_argument(
        "--redo",
        action="store_true",
        help="run again what other code than this has made",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    """Say how the table is printed."""
    parser.add_argument(
        "--format",
        choices=("markdown", "latex", "csv"),
        default="markdown",
        help="of the table that is printed (default: markdown)",
    )


def several(option: str, given: str, kind: Callable[[str], Value]) -> list[Value]:
    """Read the values of an option, at least one.

    Raises
    ------
    ConfigError
        That names the option.
    """
    try:
        values = [kind(value) for value in given.split()]
    except ValueError as error:
        raise ConfigError(f"--{option}={given!r}: {error}") from error
    if not values:
        raise ConfigError(f"--{option}={given!r} must name at least one")
    return values
