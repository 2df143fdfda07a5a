"""``recbole-fedras prepare``: published files as atomic files."""

from __future__ import annotations

import argparse


def prepare(argv: list[str]) -> None:
    """Turn a dataset's published file into RecBole's."""
    from recbole_fedras.config import registry

    parser = argparse.ArgumentParser(
        prog="recbole-fedras prepare",
        description="Turn a dataset's published file into RecBole's atomic file.",
    )
    parser.add_argument("dataset", help=", ".join(registry.names("dataset")))
    parser.add_argument("source", help="the published file, or its folder")
    parser.add_argument(
        "--output", default="dataset", help="data_path to write to (default: dataset)"
    )
    arguments = parser.parse_args(argv)
    from recbole_fedras.data import prepare as published

    rows = published.prepare(arguments.dataset, arguments.source, arguments.output)
    print(
        f"{len(rows):,} interactions of {rows['user_id'].nunique():,} users with "
        f"{rows['item_id'].nunique():,} items are in "
        f"{arguments.output}/{arguments.dataset}; train with "
        f"-d {arguments.dataset} --data_path={arguments.output}"
    )
