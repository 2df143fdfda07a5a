"""What a SuperLink runs: one run of the configuration."""

from recbole_fedras.deploy.server import run, server_app

app = server_app(run)
