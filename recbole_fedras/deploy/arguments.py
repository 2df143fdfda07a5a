"""Arguments of ``recbole-fedras deploy``, and what they must be."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_fedras.errors import ConfigError

if TYPE_CHECKING:
    from recbole_fedras.config import Config

#: Makes what answers a shard's requests, of its data and its folder.
HANDLE = "recbole_fedras.deploy.node:make_handle"


def read_run(arguments: argparse.Namespace, rest: list[str]) -> tuple[str, Config]:
    """Return a run's keys as YAML, checked as those of any other run."""
    import yaml

    from recbole_fedras.config.arguments import files_of
    from recbole_fedras.config.checkpoint import plain

    config = config_of(arguments, rest)
    files = [str(Path(file).resolve()) for file in files_of(arguments)]
    keys = config.external_config_dict | {"config_files": files}
    return yaml.safe_dump(plain(keys)), config


def config_of(arguments: argparse.Namespace, rest: list[str]) -> Config:
    """Return the configuration that arguments say."""
    from recbole_fedras.config import Config
    from recbole_fedras.config.arguments import files_of

    return Config(arguments.model, arguments.dataset, files_of(arguments), argv=rest)


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a command."""
    return argparse.ArgumentParser(
        prog=f"recbole-fedras deploy {name}",
        description=description,
        allow_abbrev=False,
    )


def add_address(parser: argparse.ArgumentParser) -> None:
    """Take where a SuperLink listens."""
    parser.add_argument(
        "--address",
        default="0.0.0.0:8000",
        help="to listen at, 0.0.0.0 or 127.0.0.1 (default: %(default)s)",
    )


def add_place(parser: argparse.ArgumentParser, folder: str) -> None:
    """Take keys, or none, and a folder."""
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


def add_data(parser: argparse.ArgumentParser) -> None:
    """Take a shard's data."""
    parser.add_argument("--data_path", required=True, help="folder of the dataset's")
    parser.add_argument("--dataset", required=True, help="its name")
    parser.add_argument(
        "--config_files",
        help="YAML files of the node's own: their keys of data count, and classes "
        "beside them may be named by a run",
    )
    parser.add_argument("--handle", default=HANDLE, help=argparse.SUPPRESS)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Take a configuration."""
    from recbole_fedras.config.arguments import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument("--app", help=argparse.SUPPRESS)


def keys_of(arguments: argparse.Namespace) -> Path | None:
    """Return the folder of keys; None without TLS."""
    return None if arguments.insecure else Path(arguments.keys)


def require_safe(arguments: argparse.Namespace, host: str) -> None:
    """Refuse to go without keys, but on the loopback device."""
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


def where_to_listen(arguments: argparse.Namespace) -> tuple[str, int]:
    """Return where a SuperLink listens."""
    host, port = host_and_port(arguments.address)
    if host not in ("0.0.0.0", "127.0.0.1"):  # noqa: S104
        raise ConfigError(
            f"--address={arguments.address!r}: the server finds its SuperLink by the "
            "loopback device; give 0.0.0.0, all devices, or 127.0.0.1, that one only"
        )
    require_safe(arguments, host)
    return host, port


def host_and_port(address: str) -> tuple[str, int]:
    """Take an address apart."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(ValueError):
        if host and 0 < int(port) < 2**16:
            return host.strip("[]"), int(port)
    raise ConfigError(f"{address!r} is not host:port, as 192.168.0.7:8000")
