"""``recbole-fedras rate-distortion``: error against bytes."""

from __future__ import annotations

import argparse

from recbole_fedras.commands.options import add_format, loading
from recbole_fedras.config.arguments import add_config_arguments, files_of


def rate_distortion(argv: list[str]) -> None:
    """Compress one update by every compressor."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras rate-distortion",
        description="Compress one update by every compressor, within the same bytes; "
        "print and plot error against bytes.",
        epilog="Any --key=value sets a key of the configuration.",
        allow_abbrev=False,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--update",
        help="update to compress: .npz with ids, rows, n_items, or .npy with a change "
        "of every row (default: capture one)",
    )
    parser.add_argument("--direction", default="downlink", help="or uplink")
    parser.add_argument(
        "--rounds", type=int, default=30, help="rounds before the capture (default 30)"
    )
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        help="compression rates, of all bytes",
    )
    parser.add_argument(
        "--output", default="rate_distortion", help="folder for table, plot and update"
    )
    add_format(parser)
    arguments, rest = parser.parse_known_args(argv)
    with loading():
        from recbole_fedras.config import Config
        from recbole_fedras.experiments.rate_distortion import (
            RATES,
            run_rate_distortion,
        )

    config = Config(arguments.model, arguments.dataset, files_of(arguments), argv=rest)
    with config.in_use():
        table = run_rate_distortion(
            config,
            arguments.update,
            arguments.direction,
            arguments.rounds,
            arguments.rates or RATES,
            arguments.output,
        )
    print(table.printed(arguments.format), end="")
