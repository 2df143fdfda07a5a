"""``recbole-fedras leak``: what messages give away."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_fedras.commands.options import add_format, add_jobs, loading, several
from recbole_fedras.config.arguments import add_config_arguments, files_of


def leak(argv: list[str]) -> None:
    """Measure what attackers at the server recover."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras leak",
        description="Measure how well attackers at the server recover what clients "
        "interacted with, from the bytes that these send: AUC, precision, quality and "
        "bytes in a table and a plot. Finished runs are kept.",
        epilog="Any --key=value sets a key of the configuration of all runs; "
        "--attacker_class=module.Class adds an attacker of yours. Unless you say "
        "otherwise, runs have --epochs=100 --eval_step=20.",
        allow_abbrev=False,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--compressors", default="none TopK SVD KLT FedRAS", help="one or more names"
    )
    parser.add_argument("--compression_rates", default="0.9375", help="one or more")
    parser.add_argument(
        "--negatives", default="4", help="for each interaction and epoch, one or more"
    )
    parser.add_argument(
        "--protections",
        default="none pseudo_items",
        help="none, or transforms by name, joined by + where several go together",
    )
    parser.add_argument("--seeds", default="2020", help="one or more")
    add_jobs(parser)
    add_format(parser)
    parser.add_argument("--output", default="leak", help="folder for runs and tables")
    arguments, rest = parser.parse_known_args(argv)
    with loading():
        from recbole_fedras.config import Config
        from recbole_fedras.experiments.leak_report import Grid, report_leaks
        from recbole_fedras.experiments.sweep import Sweep

    shared = Config(arguments.model, arguments.dataset, files_of(arguments), argv=rest)
    grid = Grid(
        several("compressors", arguments.compressors, str),
        several("compression_rates", arguments.compression_rates, float),
        several("negatives", arguments.negatives, int),
        several("protections", arguments.protections, str),
        several("seeds", arguments.seeds, int),
    )
    with shared.in_use():
        sweep = Sweep(Path(arguments.output), arguments.jobs, arguments.redo)
        report_leaks(grid, shared.external_config_dict, sweep, arguments.format)
