"""The ServerApp: a run whose shards are reached by Flower."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import yaml
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from recbole_fedras.deploy.links import FlowerLinks
from recbole_fedras.errors import TOLD
from recbole_fedras.wire.links import Links

#: Takes the YAML text of a run, and ways to its shards.
Run: TypeAlias = Callable[[str, Links], object]


def server_app(run: Run) -> ServerApp:
    """Return a ServerApp that calls ``run`` with the text of the run's ``config``."""
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each poll
        logging.getLogger("flwr").addFilter(_OneLine())
        run(str(context.run_config["config"]), FlowerLinks(grid))

    app.main()(main)
    return app


class _OneLine(logging.Filter):
    """Has Flower log an error that its user is meant to be told as one line.

    Instead of that it logs a traceback, and then what its exit status means.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; return whether it is logged."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, TOLD):
            record.msg, record.args, record.exc_info = f"error: {error}", (), None
            self._told = True
            return True
        return not (self._told and str(record.msg).startswith("Exit Code: "))


def run(config: str, links: Links) -> None:
    """Run a configuration, as any other, over the shards that ``links`` reach."""
    from recbole_fedras.config import Config
    from recbole_fedras.run.deployed import deploy

    keys = yaml.safe_load(config) or {}
    files = keys.pop("config_files", [])
    deploy(Config(config_file_list=files, config_dict=keys), links)
