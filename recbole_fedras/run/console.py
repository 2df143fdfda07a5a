"""Standard output of any encoding: characters that it lacks are written otherwise."""

from __future__ import annotations

import codecs
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_HANDLER = "recbole_fedras.plain"
_PLAIN = {"±": "+-", "─": "-", "│": "|"}


def adapt_output() -> None:
    """Have standard output never fail for a character; tables stay readable."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_HANDLER)


@contextmanager
def only_in_files() -> Iterator[None]:
    """Have the log tell the screen warnings only, which a bar is on; its file has all.

    Examples
    --------
    >>> with only_in_files():
    ...     logging.getLogger().info("best round so far")
    """
    screens = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
    ]
    levels = [screen.level for screen in screens]
    for screen in screens:
        screen.setLevel(max(screen.level, logging.WARNING))
    try:
        yield
    finally:
        for screen, level in zip(screens, levels, strict=True):
            screen.setLevel(level)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be encoded: lines of tables, else by a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(map(_plain_character, lacking)), error.end


def _plain_character(character: str) -> str:
    crossing = "\u2500" <= character <= "\u257f"  # Unicode's box drawing
    return _PLAIN.get(character, "+" if crossing else "?")


codecs.register_error(_HANDLER, _plain)
