"""Command line: ``recbole-fedras``, ``python -m recbole_fedras``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from recbole_fedras import registry
from recbole_fedras.checkpoint import plain
from recbole_fedras.compressor import Compressor
from recbole_fedras.config import Config
from recbole_fedras.federation.simulation import NonFiniteError
from recbole_fedras.quick_start import run_recbole_fedras


def script() -> None:
    """Console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="recbole-fedras",
        description="Train a RecBole recommender federatedly.",
        epilog="Any --key=value sets a key of the configuration, as in RecBole: "
        "--compressor=TopK --compression_rate=0.9375 --epochs=100 --resume=FILE",
        allow_abbrev=False,
    )
    parser.add_argument("--model", "-m", help="MF, NCF or your own (default: MF)")
    parser.add_argument("--dataset", "-d", help="a RecBole dataset (default: ml-100k)")
    parser.add_argument("--config_files", help='YAML files: "a.yaml b.yaml"')
    parser.add_argument(
        "--list", action="store_true", help="list models and compressors, and exit"
    )
    arguments, rest = parser.parse_known_args(argv)
    files = arguments.config_files.split() if arguments.config_files else []
    try:
        if arguments.list and rest:
            raise ValueError(f"--list takes no other keys than --config_files: {rest}")
        if arguments.list:
            print(_listing(files))
            return 0
        run_recbole_fedras(arguments.model, arguments.dataset, files, argv=rest)
    except (ValueError, OSError, ImportError, NonFiniteError) as error:
        print(f"recbole-fedras: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\nrecbole-fedras: interrupted; {interrupt}", file=sys.stderr)
        return 130
    return 0


def _listing(config_files: list[str]) -> str:
    """Models and compressors that ship with us or that ``config_files`` name."""
    found: dict[str, dict[str, dict[str, Any]]] = {
        kind: {
            name: registry.read_properties(kind, name) for name in registry.names(kind)
        }
        for kind in ("model", "compressor")
    }
    if config_files:
        own = Config(config_file_list=config_files)
        for kind, keys in found.items():
            if f"{kind}_class" in own.external_config_dict:
                keys[own[kind]] = {f"{kind}_class": own[f"{kind}_class"]}
    rows = []
    for kind, keys_of_name in found.items():
        for name, keys in keys_of_name.items():
            path = str(keys.pop(f"{kind}_class"))
            cls = registry.load_class(f"{kind}_class", path, object)
            if issubclass(cls, Compressor):
                keys = registry.hyper_parameters(cls) | keys
            defaults = ", ".join(f"{key}={plain(value)}" for key, value in keys.items())
            rows.append((kind, name, _first_line(cls), defaults))
    return str(tabulate(rows, headers=("kind", "name", "what", "keys")))


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
