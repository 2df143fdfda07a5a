"""The ServerApp: a run whose shards are reached by Flower."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

import yaml
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from recbole_fedras.deploy.links import FlowerLinks
from recbole_fedras.wire.links import Links

#: Takes the YAML text of a run, and ways to its shards.
Run: TypeAlias = Callable[[str, Links], object]


def server_app(run: Run) -> ServerApp:
    """Return a ServerApp that calls ``run`` with the text of the run's ``config``."""
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each poll
        run(str(context.run_config["config"]), FlowerLinks(grid))

    app.main()(main)
    return app


def run(config: str, links: Links) -> None:
    """Run a configuration, as any other, over the shards that ``links`` reach."""
    from recbole_fedras.config import Config
    from recbole_fedras.run.deployed import deploy

    deploy(Config(config_dict=yaml.safe_load(config)), links)
