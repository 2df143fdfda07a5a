"""Flower's own programs, as our children: they end when we do, however we end.

``python -m recbole_fedras.deploy.programs superlink|supernode`` and Flower's arguments.
"""

from __future__ import annotations

import os
import sys

from flwr.supercore.app_utils import start_parent_process_monitor


def superlink() -> None:
    """Run ``flower-superlink`` behind our :class:`Guard`."""
    from flwr.superlink import extensions
    from flwr.superlink.cli import flower_superlink
    from starlette.middleware import Middleware

    from recbole_fedras.deploy.guard import Guard

    extensions.get_middleware = lambda: (Middleware(Guard),)
    flower_superlink()


def supernode() -> None:
    """Run ``flower-supernode``."""
    from flwr.supernode.cli import flower_supernode

    flower_supernode()


if __name__ == "__main__":
    start_parent_process_monitor(os.getppid())
    program = {"superlink": superlink, "supernode": supernode}[sys.argv.pop(1)]
    program()
