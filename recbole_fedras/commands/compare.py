"""``recbole-fedras compare``: methods side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_fedras.commands.options import add_jobs, several
from recbole_fedras.config.arguments import add_config_arguments, files_of


def compare(argv: list[str]) -> None:
    """Compare compressors on a dataset."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras compare",
        description="Compare compressors on a dataset: quality, bytes and seconds in a "
        "table, learning curves and more in report.html. Finished runs are kept.",
        epilog="Any --key=value sets a key of the configuration of all runs.",
        allow_abbrev=False,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--compressors",
        default="none TopK SVD CoLR FedRAS",
        help="names; the others are tested against the first",
    )
    parser.add_argument("--compression_rates", default="0.9375", help="one or more")
    parser.add_argument("--seeds", default="2020", help="one or more")
    parser.add_argument(
        "--target",
        type=float,
        default=0.95,
        help="share of the first's best validation score: in a described world (key "
        "world), the table says after how many hours each reached it (default: 0.95)",
    )
    add_jobs(parser)
    parser.add_argument(
        "--output", default="comparison", help="folder for runs, tables and report"
    )
    parser.add_argument(
        "--centralised",
        action="store_true",
        help="also RecBole's own BPR, trained on everybody's data, same candidates",
    )
    arguments, rest = parser.parse_known_args(argv)
    from recbole_fedras.config import Config
    from recbole_fedras.experiments import compare as comparison
    from recbole_fedras.experiments.sweep import Sweep

    shared = Config(arguments.model, arguments.dataset, files_of(arguments), argv=rest)
    with shared.in_use():
        comparison.compare(
            several("compressors", arguments.compressors, str),
            several("compression_rates", arguments.compression_rates, float),
            shared.external_config_dict,
            several("seeds", arguments.seeds, int),
            Sweep(Path(arguments.output), arguments.jobs, arguments.redo),
            arguments.target,
            arguments.centralised,
        )
