"""``recbole-fedras recommend``: the best items for users."""

from __future__ import annotations

import argparse

from recbole_fedras.commands.options import loading
from recbole_fedras.config.arguments import words
from recbole_fedras.errors import ConfigError
from recbole_fedras.run.stages import stage


def recommend(argv: list[str]) -> None:
    """Print the best items for users of a finished run."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras recommend",
        description="Print the best items for users of a finished run, of those that "
        "they have not seen, by its best round.",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--users", nargs="+", default=[], help="ids of the dataset")
    parser.add_argument(
        "--items",
        action="append",
        default=[],
        help="what somebody has seen who is not in the dataset, \"12 50 'my item'\"; "
        "may stand several times",
    )
    parser.add_argument("-k", type=int, default=10, help="items each (default: 10)")
    parser.add_argument("--data_path", help="where the datasets are, if moved")
    parser.add_argument("--output", help="CSV file to write as well")
    arguments = parser.parse_args(argv)
    if not (arguments.users or arguments.items):
        raise ConfigError("recommend needs --users or --items, one at least")
    with loading():
        from tabulate import tabulate

        from recbole_fedras.run.finished import load_run
    with stage(f"reading {arguments.run}"):
        finished = load_run(arguments.run, arguments.data_path)
    users = [*arguments.users, *map(words, arguments.items)]
    best = finished.recommend(users, arguments.k)
    if arguments.output:
        try:
            best.to_csv(arguments.output, index=False, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output={arguments.output!r}: {error}") from error
    lines = best.values.tolist()
    columns = list(best.columns)
    print(tabulate(lines, columns, floatfmt=".4f", disable_numparse=[0, 1]))
