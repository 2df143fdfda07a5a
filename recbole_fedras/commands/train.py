"""``recbole-fedras [train]``: one run; and what there is to choose from."""

from __future__ import annotations

import argparse

from recbole_fedras.commands import COMMANDS
from recbole_fedras.commands.options import loading
from recbole_fedras.config.arguments import add_config_arguments, files_of
from recbole_fedras.errors import ConfigError
from recbole_fedras.version import __version__


def train(argv: list[str]) -> None:
    """Train as the arguments say, or list what they could say."""
    width = max(map(len, COMMANDS))
    commands = [f"  {name:{width}}  {one.what}" for name, one in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="recbole-fedras",
        usage="%(prog)s [COMMAND] [--key=value ...]",
        description="Train a RecBole recommender federatedly, or do what COMMAND says.",
        epilog="\n".join(
            [
                "commands, each with a --help of its own:",
                *commands,
                "",
                "keys: --key=value sets any key of the configuration, as in RecBole:",
                "  --compressor=TopK --compression_rate=0.9375 --epochs=100",
                "  --list shows what there is, --list compressor KLT all about one;",
                "  docs/config.md has all keys.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--list",
        nargs="*",
        metavar=("KIND", "NAME"),
        help="list what can be chosen, of one kind or one with all about it, and exit",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    arguments, rest = parser.parse_known_args(argv)
    files = files_of(arguments)
    if arguments.list is not None:
        _list(arguments.list, files, rest)
        return
    with loading():
        from recbole_fedras.quick_start import run_recbole_fedras

    run_recbole_fedras(arguments.model, arguments.dataset, files, argv=rest)


def _list(chosen: list[str], files: list[str], rest: list[str]) -> None:
    from recbole_fedras.config.listing import listed

    if rest:
        raise ConfigError(f"--list takes no other keys than --config_files: {rest}")
    print(listed(chosen, files))
