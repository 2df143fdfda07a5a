"""``recbole-fedras deploy ...``: keys, a server, shards, or all on one machine."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_fedras.deploy.processes import (
    Family,
    Process,
    ended_by_signals,
    environment,
    free_port,
    only_here,
)
from recbole_fedras.errors import ConfigError, KilledError

if TYPE_CHECKING:
    from recbole_fedras.config import Config

_HANDLE = "recbole_fedras.deploy.node:make_handle"


def deploy(argv: Sequence[str]) -> None:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras deploy",
        description="Run a federation as real processes, on Flower.",
        epilog="keys: make certificates and keys; server: run a configuration; shard: "
        "hold a shard; local: all of these on one machine; superlink: keep a SuperLink "
        "for `flwr run`; worker: what shard starts. Each has a --help of its own.",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=_COMMANDS)
    if importlib.util.find_spec("flwr") is None:
        raise ConfigError(
            "deploy needs Flower: pip install -c constraints-deploy.txt "
            '"recbole-fedras[deploy]" (Python 3.11 or newer)'
        )
    command = parser.parse_args(argv[:1]).command
    with ended_by_signals():
        _COMMANDS[command](argv[1:])


def _keys(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.keys import make_keys

    parser = _parser("keys", "Make a test authority, the server's certificate, keys.")
    parser.add_argument("folder", help="where they are or will be; none is overwritten")
    parser.add_argument("--nodes", nargs="+", default=[], help="names of nodes")
    parser.add_argument(
        "--hosts", nargs="+", default=[], help="what nodes call the server's machine"
    )
    arguments = parser.parse_args(argv)
    for path in make_keys(Path(arguments.folder), arguments.hosts, arguments.nodes):
        print(path)


def _server(argv: Sequence[str]) -> None:
    parser = _parser("server", "Run a configuration over the shards that connect.")
    _add_address(parser)
    _add_place(parser, "deployment/server")
    _add_run(parser)
    arguments, rest = parser.parse_known_args(argv)
    config, _ = _read(arguments, rest)
    host, port = _listen(arguments)
    with only_here(Path(arguments.folder)), Family() as family:
        _run(arguments, host, port, config, family, [])


def _superlink(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.superlink import APP, SuperLink

    parser = _parser("superlink", "Start a SuperLink, for `flwr run` by hand.")
    _add_address(parser)
    _add_place(parser, "deployment/server")
    arguments = parser.parse_args(argv)
    host, port = _listen(arguments)
    folder = Path(arguments.folder)
    with only_here(folder), Family() as family:
        link = SuperLink(folder, host, port, _keys_of(arguments))
        process = link.start(family)
        home = environment(link.home)["FLWR_HOME"]
        print(f"by hand: FLWR_HOME={home} flwr run {APP} --stream", flush=True)
        while True:
            process.tend()
            time.sleep(0.5)


def _shard(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.shard import Shard

    parser = _parser("shard", "Hold a shard: train its clients when a server asks.")
    parser.add_argument("--name", required=True, help="of the node, as the key's file")
    parser.add_argument("--superlink", required=True, help="host:port of the server")
    _add_place(parser, "deployment/NAME")
    _add_data(parser)
    arguments = parser.parse_args(argv)
    host, _ = _split(arguments.superlink)
    _require_safe(arguments, host)
    folder = Path(arguments.folder.replace("NAME", arguments.name))
    with only_here(folder), Family() as family:
        worker = _worker_command(arguments, folder)
        keys = _keys_of(arguments)
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

    parser = _parser("worker", "Answer for a SuperNode; `shard` starts it.")
    _add_data(parser)
    parser.add_argument("folder")
    parser.add_argument("address")
    parser.add_argument("secret")
    arguments = parser.parse_args(argv)
    start_parent_process_monitor(os.getppid())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each poll
    make_handle = pkgutil.resolve_name(arguments.handle)
    handle = make_handle(
        Path(arguments.data_path), arguments.dataset, Path(arguments.folder)
    )
    serve(handle, arguments.address, Path(arguments.secret))


def _local(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.keys import make_keys

    parser = _parser("local", "Run server and shards here, on the loopback device.")
    parser.add_argument(
        "--shards", nargs="+", required=True, help="data_path of each, named as it is"
    )
    _add_place(parser, "deployment")
    parser.add_argument("--handle", default=_HANDLE, help=argparse.SUPPRESS)
    _add_run(parser)
    arguments, rest = parser.parse_known_args(argv)
    config, arguments.dataset = _read(arguments, rest)
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
        shards = [
            _shard_process(arguments, folder, name, path, port)
            for name, path in paths.items()
        ]
        _run(arguments, "127.0.0.1", port, config, family, shards)


def _catalogue(argv: Sequence[str]) -> None:
    from recbole_fedras.data.dataset import catalogue_of
    from recbole_fedras.run.setup import load_data

    parser = _parser("catalogue", "Write the items of a dataset, a token a line.")
    parser.add_argument("--output", default="catalogue.txt", help="(%(default)s)")
    _add_run(parser)
    arguments, rest = parser.parse_known_args(argv)
    config = _config(arguments, rest)
    catalogue = catalogue_of(load_data(config))
    Path(arguments.output).write_bytes(catalogue.to_bytes() + b"\n")
    print(f"{len(catalogue)} items are in {arguments.output}")


def _parts(argv: Sequence[str]) -> None:
    from recbole_fedras.deploy.split import split

    parser = _parser("split", "Take a dataset apart, to try a deployment with.")
    parser.add_argument("--shards", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--output", default="shards", help="(%(default)s)")
    _add_run(parser)
    arguments, rest = parser.parse_known_args(argv)
    config = _config(arguments, rest)
    for folder in split(config, arguments.shards, Path(arguments.output)):
        print(folder)
    print(f"items are in {arguments.output}/catalogue.txt")


_COMMANDS = {
    "catalogue": _catalogue,
    "keys": _keys,
    "local": _local,
    "server": _server,
    "shard": _shard,
    "split": _parts,
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

    superlink = SuperLink(Path(arguments.folder), host, port, _keys_of(arguments))
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
        "--insecure" if arguments.insecure else f"--keys={arguments.keys}",
    ]
    env = environment(folder / name / "flower")
    return Process(f"shard {name}", command, folder / f"{name}.log", env)


def _worker_command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "recbole_fedras", "deploy", "worker"),
        *(f"--data_path={arguments.data_path}", f"--dataset={arguments.dataset}"),
        *(f"--handle={arguments.handle}", str(folder)),
    ]


def _read(arguments: argparse.Namespace, rest: list[str]) -> tuple[str, str]:
    """Return a run's keys as YAML, checked as those of any other run; its dataset."""
    import yaml

    from recbole_fedras.config.checkpoint import plain

    config = _config(arguments, rest)
    return yaml.safe_dump(plain(config.external_config_dict)), config.dataset


def _config(arguments: argparse.Namespace, rest: list[str]) -> Config:
    from recbole_fedras.config import Config
    from recbole_fedras.config.arguments import files_of

    return Config(arguments.model, arguments.dataset, files_of(arguments), argv=rest)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"recbole-fedras deploy {name}",
        description=description,
        allow_abbrev=False,
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        default="0.0.0.0:8000",
        help="to listen at, 0.0.0.0 or 127.0.0.1 (default: %(default)s)",
    )


def _add_place(parser: argparse.ArgumentParser, folder: str) -> None:
    parser.add_argument("--keys", help="folder of keys and certificates")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="neither TLS nor keys; on the loopback device only",
    )
    parser.add_argument(
        "--folder",
        default=folder,
        help="for what is kept, and logs (default: %(default)s)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data_path", required=True, help="folder of the dataset's")
    parser.add_argument("--dataset", required=True, help="its name")
    parser.add_argument("--handle", default=_HANDLE, help=argparse.SUPPRESS)


def _add_run(parser: argparse.ArgumentParser) -> None:
    from recbole_fedras.config.arguments import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument("--app", help=argparse.SUPPRESS)


def _keys_of(arguments: argparse.Namespace) -> Path | None:
    return None if arguments.insecure else Path(arguments.keys)


def _require_safe(arguments: argparse.Namespace, host: str) -> None:
    from recbole_fedras.deploy.guard import is_loopback

    if arguments.insecure and not is_loopback(host):
        raise ConfigError(
            f"--insecure with {host!r}: without TLS and keys only the loopback device, "
            "127.0.0.1, is allowed; make keys by `recbole-fedras deploy keys`"
        )
    if not arguments.insecure and not arguments.keys:
        raise ConfigError(
            "--keys=FOLDER is missing; make keys by `recbole-fedras deploy keys`"
        )


def _listen(arguments: argparse.Namespace) -> tuple[str, int]:
    """Return where a SuperLink listens."""
    host, port = _split(arguments.address)
    if host not in ("0.0.0.0", "127.0.0.1"):  # noqa: S104
        raise ConfigError(
            f"--address={arguments.address!r}: the server finds its SuperLink by the "
            "loopback device; give 0.0.0.0, all devices, or 127.0.0.1, that one only"
        )
    _require_safe(arguments, host)
    return host, port


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(ValueError):
        if host and 0 < int(port) < 2**16:
            return host.strip("[]"), int(port)
    raise ConfigError(f"{address!r} is not host:port, as 192.168.0.7:8000")
