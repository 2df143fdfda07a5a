"""``recbole-fedras deploy ...``: keys, a server, shards, or all on one machine."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from recbole_fedras.config.arguments import files_of
from recbole_fedras.deploy.arguments import (
    HANDLE,
    add_address,
    add_data,
    add_place,
    add_run,
    config_of,
    host_and_port,
    keys_of,
    parser_of,
    read_run,
    require_safe,
    where_to_listen,
)
from recbole_fedras.deploy.processes import (
    Family,
    Process,
    ended_by_signals,
    environment,
    free_port,
    only_here,
)
from recbole_fedras.errors import ConfigError, KilledError


def deploy(argv: Sequence[str]) -> None:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras deploy",
        description="Run a federation as real processes, on Flower.",
        epilog="split: take a dataset apart, to try it; catalogue: list its items; "
        "keys: make certificates and keys; server: run a configuration; shard: "
        "hold a shard; local: all of these on one machine; superlink: keep a SuperLink "
        "for `flwr run`; worker: what shard starts. Each has a --help of its own.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=_COMMANDS)
    command = parser.parse_args(argv[:1]).command
    if importlib.util.find_spec("flwr") is None:
        raise ConfigError(
            "deploy needs Flower: pip install -c constraints-deploy.txt "
            '"recbole-fedras[deploy]" (Python 3.11 or newer)'
        )
    with ended_by_signals():
        _COMMANDS[command](argv[1:])


def _keys(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.keys import make_keys

    parser = parser_of("keys", "Make a test authority, the server's certificate, keys.")
    parser.add_argument("folder", help="where they are or will be; none is overwritten")
    parser.add_argument("--nodes", nargs="+", default=[], help="names of nodes")
    parser.add_argument(
        "--hosts", nargs="+", default=[], help="what nodes call the server's machine"
    )
    arguments = parser.parse_args(argv)
    for path in make_keys(Path(arguments.folder), arguments.hosts, arguments.nodes):
        print(path)


def _server(argv: Sequence[str]) -> None:
    parser = parser_of("server", "Run a configuration over the shards that connect.")
    add_address(parser)
    add_place(parser, "deployment/server")
    add_run(parser)
    arguments, rest = parser.parse_known_args(argv)
    config, _ = read_run(arguments, rest)
    host, port = where_to_listen(arguments)
    with only_here(Path(arguments.folder)), Family() as family:
        _run(arguments, host, port, config, family, [])


def _superlink(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.superlink import APP, SuperLink

    parser = parser_of("superlink", "Start a SuperLink, for `flwr run` by hand.")
    add_address(parser)
    add_place(parser, "deployment/server")
    arguments = parser.parse_args(argv)
    host, port = where_to_listen(arguments)
    folder = Path(arguments.folder)
    with only_here(folder), Family() as family:
        link = SuperLink(folder, host, port, keys_of(arguments))
        process = link.start(family)
        home = environment(link.home)["FLWR_HOME"]
        print(f"by hand: FLWR_HOME={home} flwr run {APP} --stream", flush=True)
        while True:
            process.tend()
            time.sleep(0.5)


def _shard(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.shard import Shard

    parser = parser_of("shard", "Hold a shard: train its clients when a server asks.")
    parser.add_argument("--name", required=True, help="of the node, as the key's file")
    parser.add_argument("--superlink", required=True, help="host:port of the server")
    add_place(parser, "deployment/NAME")
    add_data(parser)
    arguments = parser.parse_args(argv)
    host, _ = host_and_port(arguments.superlink)
    require_safe(arguments, host)
    folder = Path(arguments.folder.replace("NAME", arguments.name))
    with only_here(folder), Family() as family:
        worker = _worker_command(arguments, folder)
        keys = keys_of(arguments)
        shard = Shard(arguments.name, arguments.superlink, folder, keys, worker)
        processes = shard.start(family)
        print(f"shard {arguments.name}: logs are in {folder}", flush=True)
        while True:
            _tend(processes)
            time.sleep(0.5)


def _worker(argv: Sequence[str]) -> None:
    """Be the worker of a shard; :func:`_shard` starts it."""
    import logging
    import os
    import pkgutil

    from flwr.supercore.app_utils import start_parent_process_monitor

    from recbole_fedras.deploy.worker import serve

    parser = parser_of("worker", "Answer for a SuperNode; `shard` starts it.")
    add_data(parser)
    parser.add_argument("folder")
    parser.add_argument("address")
    parser.add_argument("secret")
    arguments = parser.parse_args(argv)
    start_parent_process_monitor(os.getppid())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each poll
    make_handle = pkgutil.resolve_name(arguments.handle)
    handle = make_handle(
        Path(arguments.data_path),
        arguments.dataset,
        Path(arguments.folder),
        files_of(arguments),
    )
    serve(handle, arguments.address, Path(arguments.secret))


def _local(argv: Sequence[str]) -> None:
    import yaml

    from recbole_fedras.config.recbole_keys import of_data
    from recbole_fedras.deploy.keys import make_keys

    parser = parser_of("local", "Run server and shards here, on the loopback device.")
    parser.add_argument(
        "--shards", nargs="+", required=True, help="data_path of each, named as it is"
    )
    add_place(parser, "deployment")
    parser.add_argument("--handle", default=HANDLE, help=argparse.SUPPRESS)
    add_run(parser)
    arguments, rest = parser.parse_known_args(argv)
    text, config = read_run(arguments, rest)
    arguments.dataset = config.dataset
    folder, port = Path(arguments.folder), free_port()
    paths = {Path(path).name: path for path in arguments.shards}
    if len(paths) < len(arguments.shards):
        raise ConfigError(f"--shards={arguments.shards}: two have one name")
    with only_here(folder), Family() as family:
        if not arguments.insecure:
            arguments.keys = arguments.keys or str(folder / "keys")
            make_keys(Path(arguments.keys), [], list(paths))
        arguments.folder = str(folder / "server")
        Path(arguments.folder).mkdir(exist_ok=True)
        own = folder / "data.yaml"
        own.write_text(yaml.safe_dump(of_data(config.resolved)), encoding="utf-8")
        arguments.config_files = shlex.join([*files_of(arguments), str(own)])
        shards = [
            _shard_process(arguments, folder, name, path, port)
            for name, path in paths.items()
        ]
        _run(arguments, "127.0.0.1", port, text, family, shards)


def _catalogue(argv: Sequence[str]) -> None:
    from recbole_fedras.data.dataset import catalogue_of
    from recbole_fedras.run.setup import load_data

    parser = parser_of("catalogue", "Write the items of a dataset, a token a line.")
    parser.add_argument("--output", default="catalogue.txt", help="(%(default)s)")
    add_run(parser)
    arguments, rest = parser.parse_known_args(argv)
    catalogue = catalogue_of(load_data(config_of(arguments, rest)))
    Path(arguments.output).write_bytes(catalogue.to_bytes() + b"\n")
    print(f"{len(catalogue)} items are in {arguments.output}")


def _split(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.split import split

    parser = parser_of("split", "Take a dataset apart, to try a deployment with.")
    parser.add_argument("--shards", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--output", default="shards", help="(%(default)s)")
    add_run(parser)
    arguments, rest = parser.parse_known_args(argv)
    output = Path(arguments.output)
    for folder in split(config_of(arguments, rest), arguments.shards, output):
        print(folder)
    print(f"items are in {output / 'catalogue.txt'}")


_COMMANDS = {
    "catalogue": _catalogue,
    "split": _split,
    "keys": _keys,
    "local": _local,
    "server": _server,
    "shard": _shard,
    "superlink": _superlink,
    "worker": _worker,
}


def _run(
    arguments: argparse.Namespace,
    host: str,
    port: int,
    config: str,
    family: Family,
    shards: list[Process],
) -> None:
    """Run a configuration on a SuperLink of ours, with shards of ours if any."""
    from recbole_fedras.deploy.superlink import APP, SuperLink

    superlink = SuperLink(Path(arguments.folder), host, port, keys_of(arguments))
    process = superlink.start(family)
    for shard in shards:
        family.add(shard)

    def tend() -> None:
        if process.status is not None:
            raise KilledError(
                f"the SuperLink has ended with {process.status}: {arguments.folder}"
            )
        _tend(shards)

    superlink.run(config, Path(arguments.app or APP), tend)


def _tend(processes: list[Process]) -> None:
    for process in processes:
        process.tend()


def _shard_process(
    arguments: argparse.Namespace, folder: Path, name: str, path: str, port: int
) -> Process:
    """Return the process of a shard, a command as on any other machine."""
    command = [
        *(sys.executable, "-m", "recbole_fedras", "deploy", "shard"),
        *(f"--name={name}", f"--superlink=127.0.0.1:{port}"),
        *(f"--folder={folder / name}", f"--data_path={path}"),
        *(f"--dataset={arguments.dataset}", f"--handle={arguments.handle}"),
        f"--config_files={arguments.config_files}",
        "--insecure" if arguments.insecure else f"--keys={arguments.keys}",
    ]
    env = environment(folder / name / "flower")
    return Process(f"shard {name}", command, folder / f"{name}.log", env)


def _worker_command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "recbole_fedras", "deploy", "worker"),
        *(f"--data_path={arguments.data_path}", f"--dataset={arguments.dataset}"),
        *(f"--handle={arguments.handle}", str(folder)),
        f"--config_files={arguments.config_files or ''}",
    ]
