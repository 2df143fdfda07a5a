"""``recbole-fedras vectors``: items' vectors, for other tools."""

from __future__ import annotations

import argparse

from recbole_fedras.commands.options import loading
from recbole_fedras.run.stages import stage


def vectors(argv: list[str]) -> None:
    """Write the items' vectors of a finished run."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras vectors",
        description="Write the items' vectors of a finished run, by its best round.",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument(
        "--output",
        default="items.npz",
        help=".npz of numpy (default: items.npz), or .txt of word2vec",
    )
    parser.add_argument("--data_path", help="where the datasets are, if moved")
    arguments = parser.parse_args(argv)
    with loading():
        from recbole_fedras.run.finished import load_run
    with stage(f"reading {arguments.run}"):
        finished = load_run(arguments.run, arguments.data_path)
    n_items, dim = finished.item_vectors(arguments.output).shape
    print(f"{n_items} items, {dim} values each, are in {arguments.output}")
