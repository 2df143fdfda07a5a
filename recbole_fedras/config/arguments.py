"""Arguments that every command with a configuration takes."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from recbole_fedras.errors import ConfigError


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Take a model, a dataset and configuration files."""
    parser.add_argument(
        "--model", "-m", help="a name that --list shows, or your own (default: MF)"
    )
    parser.add_argument("--dataset", "-d", help="a RecBole dataset (default: ml-100k)")
    add_files(parser)


def add_files(parser: argparse.ArgumentParser) -> None:
    """Take configuration files."""
    parser.add_argument("--config_files", help="YAML files: \"a.yaml 'my own.yaml'\"")


def files_of(arguments: argparse.Namespace) -> list[str]:
    """Return the config files: one, perhaps with blanks in its name, or several."""
    files = arguments.config_files or ""
    if Path(files).is_file():
        return [files]
    return words(files)


def words(text: str) -> list[str]:
    """Split at blanks, but not inside of quotation marks.

    Raises
    ------
    ConfigError
        If a quotation mark is not closed.
    """
    try:
        return shlex.split(text) if set(text) & {"'", '"'} else text.split()
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from error
