"""Command line: ``recbole-fedras``, ``python -m recbole_fedras``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from recbole_fedras.commands import command_of
from recbole_fedras.errors import TOLD
from recbole_fedras.run.console import adapt_output


def script() -> None:
    """Console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run as the command line says; return the exit status."""
    adapt_output()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command, rest = command_of(argv)
        command.load()(rest)
    except TOLD as error:
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


if __name__ == "__main__":
    sys.exit(main())
