"""Flower's own programs, as our children: they end when we do, however we end.

``python -m recbole_fedras.deploy.programs superlink|supernode`` and Flower's arguments.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

from flwr.supercore.app_utils import start_parent_process_monitor


def superlink() -> None:
    """Run ``flower-superlink`` behind our :class:`Guard`, and count what nodes send."""
    from flwr.superlink import extensions
    from flwr.superlink.cli import flower_superlink
    from starlette.middleware import Middleware

    from recbole_fedras.deploy.guard import Guard
    from recbole_fedras.deploy.meter import Meter, traffic_file

    layers = (Middleware(Guard), Middleware(Meter, file=traffic_file()))
    extensions.get_middleware = lambda: layers
    flower_superlink()


def supernode() -> None:
    """Run ``flower-supernode``."""
    from flwr.supernode.cli import flower_supernode

    flower_supernode()


def wait_for_predecessor() -> None:
    """Wait until no other program of ours has the same Flower home, and have it.

    One whose parent was killed takes some seconds to end, and would go on with what
    both find in the database.
    """
    home = Path(os.environ["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    lock = os.open(home / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends


if __name__ == "__main__":
    start_parent_process_monitor(os.getppid())
    wait_for_predecessor()
    program = {"superlink": superlink, "supernode": supernode}[sys.argv.pop(1)]
    program()
