"""The commands of ``recbole-fedras``: what each is for, and where it is."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

from recbole_fedras.errors import ConfigError


class Command(NamedTuple):
    """A command; nothing of it is imported before it is called.

    Attributes
    ----------
    path : str
        ``module:function``, which takes the arguments behind the command's name.
    what : str
        One line.
    """

    path: str
    what: str

    def load(self) -> Callable[[list[str]], None]:
        """Return the function."""
        function: Callable[[list[str]], None] = pkgutil.resolve_name(self.path)
        return function


COMMANDS = {
    name: Command(f"recbole_fedras.{path}", what)
    for name, path, what in [
        ("train", "commands.train:train", "train a recommender; also without a name"),
        (
            "compare",
            "commands.compare:compare",
            "methods side by side: quality, bytes, seconds, curves, tests",
        ),
        (
            "rate-distortion",
            "commands.rate_distortion:rate_distortion",
            "every compressor on one update: error against bytes",
        ),
        (
            "leak",
            "commands.leak:leak",
            "what attackers at the server recover of clients' items",
        ),
        (
            "reproduce",
            "commands.reproduce:reproduce",
            "a table or figure of the FedRAS paper, or of ours",
        ),
        (
            "recommend",
            "commands.recommend:recommend",
            "the best items for users, by a finished run",
        ),
        (
            "vectors",
            "commands.vectors:vectors",
            "a finished run's item vectors, for other tools",
        ),
        (
            "prepare",
            "commands.prepare:prepare",
            "published files of a dataset as RecBole's atomic files",
        ),
        (
            "deploy",
            "deploy.commands:deploy",
            "server and nodes as real processes, on Flower",
        ),
    ]
}


def command_of(argv: list[str]) -> tuple[Command, list[str]]:
    """Return the command that arguments begin with, train if none, and the rest.

    Raises
    ------
    ConfigError
        If the first argument is neither a command nor an option.
    """
    if not argv or argv[0].startswith("-"):
        return COMMANDS["train"], argv
    name, *rest = argv
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"there is no command {name!r}; {meant}commands: {', '.join(COMMANDS)}; "
            "keys are given as --key=value"
        )
    return COMMANDS[name], rest
