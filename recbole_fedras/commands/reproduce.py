"""``recbole-fedras reproduce``: exhibits of the paper, and ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_fedras.commands.options import add_format, add_jobs, loading, several
from recbole_fedras.config.arguments import add_files, files_of
from recbole_fedras.errors import ConfigError


def reproduce(argv: list[str]) -> None:
    """Run an exhibit."""
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
    parser.add_argument("--seeds", help="(default: the exhibit's, mostly 2020 1 2)")
    parser.add_argument(
        "--rounds",
        type=int,
        help="(default: as configured); methods that name their own keep them",
    )
    add_files(parser)
    add_jobs(parser)
    add_format(parser)
    parser.add_argument("--data_path", help="folder of the datasets' folders")
    parser.add_argument("--output", default="results", help="(default: results)")
    parser.add_argument("--dry_run", action="store_true", help="only count the runs")
    arguments, rest = parser.parse_known_args(argv)
    _run_exhibits(arguments, rest, known)


def _run_exhibits(
    arguments: argparse.Namespace, rest: list[str], known: list[str]
) -> None:
    with loading():
        from recbole_fedras.config import Config
        from recbole_fedras.config.given_keys import LOCAL
        from recbole_fedras.experiments import reproduce as reproduction
        from recbole_fedras.experiments.exhibits import has_part, read_exhibit
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
    asked = arguments.seeds
    seeds = None if asked is None else several("seeds", asked, int)
    output = Path(arguments.output)
    with config.in_use():
        for exhibit in exhibits:
            jobs = exhibit.jobs or arguments.jobs
            sweep = Sweep(
                output / exhibit.name,
                jobs,
                arguments.redo,
                beside=output,
                resolver=exhibit.resolver(),
            )
            reproduction.reproduce(
                exhibit,
                seeds or exhibit.seeds,
                local,
                sweep,
                arguments.dry_run,
                arguments.format,
            )
