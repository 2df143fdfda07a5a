"""Standard output of any encoding: characters that it lacks are written otherwise."""

from __future__ import annotations

import codecs
import io
import sys

_HANDLER = "recbole_fedras.plain"
_PLAIN = {"±": "+-", "─": "-", "│": "|"}


def adapt_output() -> None:
    """Have standard output never fail for a character; tables stay readable."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_HANDLER)


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
