"""Command line: ``recbole-fedras``, ``python -m recbole_fedras``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from recbole_fedras.config.arguments import (
    add_config_arguments,
    add_files,
    files_of,
    words,
)
from recbole_fedras.errors import (
    ConfigError,
    DataError,
    FederationError,
    KilledError,
    NonFiniteError,
)
from recbole_fedras.run.console import adapt_output

Value = TypeVar("Value")


def script() -> None:
    """Console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the command line says; return the exit status."""
    adapt_output()
    argv = list(sys.argv[1:] if argv is None else argv)
    command = _COMMANDS.get(argv[0]) if argv else None
    told = (ConfigError, DataError, NonFiniteError, FederationError, KilledError)
    try:
        if command is not None:
            command(argv[1:])
        else:
            _run(argv)
    except told as error:
        print(f"recbole-fedras: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the output, as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # a bug, of which the reader needs the whole traceback
        _print_bug(error)
        return 1
    except KeyboardInterrupt as interrupt:
        how = f"; {interrupt}" if str(interrupt) else " at once"
        print(f"\nrecbole-fedras: interrupted{how}", file=sys.stderr)
        return 130
    return 0


def _print_bug(error: Exception) -> None:
    from recbole_fedras.config import registry

    traceback.print_exception(error)
    where = registry.plug_in_of(error)
    if where:
        print(f"recbole-fedras: the error arose in {where}", file=sys.stderr)


def _run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="recbole-fedras",
        description="Train a RecBole recommender federatedly.",
        epilog="Any --key=value sets a key of the configuration, as in RecBole: "
        "--compressor=TopK --compression_rate=0.9375 --epochs=100 --resume=FILE. "
        f"Other commands, with a --help of their own: {', '.join(_COMMANDS)}.",
        allow_abbrev=False,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--list",
        action="store_true",
        help="list models, compressors and all other kinds of classes, and exit",
    )
    arguments, rest = parser.parse_known_args(argv)
    files = files_of(arguments)
    if arguments.list:
        _list(files, rest)
        return
    from recbole_fedras.quick_start import run_recbole_fedras

    run_recbole_fedras(arguments.model, arguments.dataset, files, argv=rest)


def _list(files: list[str], rest: list[str]) -> None:
    from tabulate import tabulate

    from recbole_fedras.config.listing import listing

    if rest:
        raise ConfigError(f"--list takes no other keys than --config_files: {rest}")
    print(tabulate(listing(files), headers=("kind", "name", "what", "keys")))


def _rate_distortion(argv: list[str]) -> None:
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
    arguments, rest = parser.parse_known_args(argv)
    from recbole_fedras.config import Config
    from recbole_fedras.experiments.rate_distortion import RATES, run_rate_distortion

    config = Config(arguments.model, arguments.dataset, files_of(arguments), argv=rest)
    with config.in_use():
        run_rate_distortion(
            config,
            arguments.update,
            arguments.direction,
            arguments.rounds,
            arguments.rates or RATES,
            arguments.output,
        )


def _prepare(argv: list[str]) -> None:
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
    from recbole_fedras.data.prepare import prepare

    rows = prepare(arguments.dataset, arguments.source, arguments.output)
    print(
        f"{len(rows):,} interactions of {rows['user_id'].nunique():,} users with "
        f"{rows['item_id'].nunique():,} items are in "
        f"{arguments.output}/{arguments.dataset}; train with "
        f"-d {arguments.dataset} --data_path={arguments.output}"
    )


def _compare(argv: list[str]) -> None:
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
    _add_jobs(parser)
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
    from recbole_fedras.experiments.compare import compare
    from recbole_fedras.experiments.sweep import Sweep

    shared = Config(arguments.model, arguments.dataset, files_of(arguments), argv=rest)
    with shared.in_use():
        compare(
            _several("compressors", arguments.compressors, str),
            _several("compression_rates", arguments.compression_rates, float),
            shared.external_config_dict,
            _several("seeds", arguments.seeds, int),
            Sweep(Path(arguments.output), arguments.jobs, arguments.redo),
            arguments.centralised,
        )


def _reproduce(argv: list[str]) -> None:
    from recbole_fedras.config import registry

    known = list(registry.names("experiment"))
    parser = argparse.ArgumentParser(
        prog="recbole-fedras reproduce",
        description="Run an exhibit of the FedRAS paper, or of ours; print our "
        "numbers, the paper's if it has any and the difference, and write Markdown, "
        "CSV and LaTeX. Finished runs are kept.",
        epilog="Any --key=value sets a key of the configuration of all runs, as "
        "--init_std=0.1; methods that name their own keep them.",
        allow_abbrev=False,
    )
    parser.add_argument("exhibits", nargs="+", help=f"{', '.join(known)} or all")
    parser.add_argument("--dataset", action="append", default=[], help="only this one")
    parser.add_argument("--model", action="append", default=[], help="only this one")
    parser.add_argument(
        "--without", action="append", default=[], help="leave this method out"
    )
    parser.add_argument("--seeds", default="2020 1 2", help="(default: 2020 1 2)")
    parser.add_argument(
        "--rounds",
        type=int,
        help="(default: as configured); methods that name their own keep them",
    )
    add_files(parser)
    _add_jobs(parser)
    parser.add_argument("--data_path", help="folder of the datasets' folders")
    parser.add_argument("--output", default="results", help="(default: results)")
    parser.add_argument("--dry_run", action="store_true", help="only count the runs")
    arguments, rest = parser.parse_known_args(argv)
    _reproduce_exhibits(arguments, rest, known)


def _reproduce_exhibits(
    arguments: argparse.Namespace, rest: list[str], known: list[str]
) -> None:
    from recbole_fedras.config import Config
    from recbole_fedras.experiments.exhibits import has_part, read_exhibit
    from recbole_fedras.experiments.identity import LOCAL
    from recbole_fedras.experiments.reproduce import reproduce
    from recbole_fedras.experiments.sweep import Sweep

    config = Config(config_file_list=files_of(arguments), argv=rest)
    keys = config.external_config_dict
    local = {key: keys.pop(key) for key in LOCAL & keys.keys()}
    if arguments.data_path:
        local["data_path"] = arguments.data_path
    names = arguments.exhibits
    chosen = (arguments.dataset, arguments.model, arguments.rounds)
    if "all" in arguments.exhibits:
        if arguments.without or keys:
            option = "--without takes" if arguments.without else "keys take"
            raise ConfigError(f"{option} exhibits by name, not all")
        names = [name for name in known if has_part(name, *chosen[:2])]
        if not names:
            raise ConfigError(
                f"no exhibit has --dataset={arguments.dataset} and "
                f"--model={arguments.model}"
            )
    exhibits = [read_exhibit(name, *chosen, arguments.without, keys) for name in names]
    seeds = _several("seeds", arguments.seeds, int)
    output = Path(arguments.output)
    with config.in_use():
        for exhibit in exhibits:
            jobs = exhibit.jobs or arguments.jobs
            sweep = Sweep(output / exhibit.name, jobs, arguments.redo, beside=output)
            reproduce(exhibit, seeds, local, sweep, arguments.dry_run)


def _recommend(argv: list[str]) -> None:
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
    from tabulate import tabulate

    from recbole_fedras.run.finished import load_run

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


def _deploy(argv: list[str]) -> None:
    from recbole_fedras.deploy.commands import deploy

    deploy(argv)


def _vectors(argv: list[str]) -> None:
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
    from recbole_fedras.run.finished import load_run

    finished = load_run(arguments.run, arguments.data_path)
    n_items, dim = finished.item_vectors(arguments.output).shape
    print(f"{n_items} items, {dim} values each, are in {arguments.output}")


_COMMANDS = {
    "compare": _compare,
    "deploy": _deploy,
    "prepare": _prepare,
    "rate-distortion": _rate_distortion,
    "recommend": _recommend,
    "reproduce": _reproduce,
    "vectors": _vectors,
}


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, default=-1, help="runs at a time (default: one per core)"
    )
    parser.add_argument(
        "--redo",
        action="store_true",
        help="run again what other code than this has made",
    )


def _several(option: str, given: str, kind: Callable[[str], Value]) -> list[Value]:
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


if __name__ == "__main__":
    sys.exit(main())
