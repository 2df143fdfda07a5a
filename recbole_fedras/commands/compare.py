"""``recbole-fedras compare``: methods and their settings side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recbole_fedras.commands.options import add_format, add_jobs, loading, several
from recbole_fedras.config.arguments import add_config_arguments, files_of
from recbole_fedras.errors import ConfigError

_EPILOG = """Any --key=value sets a key of the configuration of all runs.

A --run is words in quotation marks: names of compressors and presets, YAML files and
key=value; "|" stands between alternatives, of which each is a run:
  recbole-fedras compare --run=none --run="FedRAS alpha=0.2|0.4" --run="mine.yaml"
  recbole-fedras compare --run="none|KLT model=MF|NCF" --learning_rates="0.1 0.3 1"
Of a key that stands in several places a run's own words count most, then the keys of
all runs, then a run's files.
"""


def compare(argv: list[str]) -> None:
    """Compare methods on a dataset."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras compare",
        description="Compare methods on a dataset: quality, bytes and seconds in a "
        "table, learning\ncurves and more in report.html. Finished runs are kept.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config_arguments(parser)
    _add_runs(parser)
    parser.add_argument("--seeds", default="2020", help="one or more (default: 2020)")
    parser.add_argument(
        "--target",
        type=float,
        default=0.95,
        help="share of the first's best validation score: in a described world (key "
        "world), the table says after how many hours each reached it (default: 0.95)",
    )
    add_jobs(parser)
    add_format(parser)
    parser.add_argument(
        "--output",
        default="comparison",
        help="folder for runs, tables and report (default: comparison)",
    )
    parser.add_argument(
        "--keep_models",
        action="store_true",
        help="keep the folder of each run, with its model, in models/ of --output",
    )
    parser.add_argument(
        "--centralised",
        action="store_true",
        help="also RecBole's own BPR, trained on everybody's data, same candidates",
    )
    arguments, rest = parser.parse_known_args(argv)
    _compare(arguments, rest)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    """Take what is compared."""
    parser.add_argument(
        "--compressors",
        help="names; the others are tested against the first (default, without --run: "
        "none TopK SVD CoLR FedRAS)",
    )
    parser.add_argument(
        "--compression_rates", help="of all of them, one or more (default: 0.9375)"
    )
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="WORDS",
        help="a method or a setting, see below; may stand several times",
    )
    parser.add_argument(
        "--learning_rates",
        help="of these, choose one for each method that names none, on validation, "
        "with the first seed",
    )


def _compare(arguments: argparse.Namespace, rest: list[str]) -> None:
    with loading():
        from recbole_fedras.config import Config, registry
        from recbole_fedras.experiments import compare as comparison
        from recbole_fedras.experiments.methods import files_of_runs
        from recbole_fedras.experiments.sweep import Sweep
    files = files_of(arguments)
    sweep = Sweep(
        Path(arguments.output),
        arguments.jobs,
        arguments.redo,
        keep_models=arguments.keep_models,
    )
    shared = Config(arguments.model, arguments.dataset, files, argv=rest)
    with shared.in_use(), registry.importable(files_of_runs(arguments.run)):
        keys = shared.external_config_dict
        asked = comparison.Asked(
            arguments.target,
            arguments.centralised,
            _learning_rates(arguments.learning_rates, keys),
            arguments.format,
        )
        seeds = several("seeds", arguments.seeds, int)
        comparison.compare(_methods(arguments, keys), seeds, sweep, asked)


def _learning_rates(given: str | None, keys: dict[str, Any]) -> list[float]:
    if given is None:
        return []
    if "learning_rate" in keys:
        raise ConfigError(
            f"learning_rate={keys['learning_rate']} is of all runs, so that "
            f"--learning_rates={given!r} has no effect; leave one of them out, or give "
            "it in a --run"
        )
    return several("learning_rates", given, float)


def _methods(arguments: argparse.Namespace, keys: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared: compressors at rates, then runs as they are written."""
    from recbole_fedras.experiments.methods import methods_of, read_runs

    names, runs = arguments.compressors, arguments.run
    if names is None and not runs:
        names = "none TopK SVD CoLR FedRAS"
    methods = {}
    if names is not None:
        given = arguments.compression_rates or "0.9375"
        rates = several("compression_rates", given, float)
        methods = methods_of(several("compressors", names, str), rates, keys)
    elif arguments.compression_rates is not None:
        each = "|".join(several("compression_rates", arguments.compression_rates, str))
        runs = [f"{run} compression_rate={each}" for run in runs]
    return methods | read_runs(runs, keys)
