"""What tests of sweeps share."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

from conftest import COMMON

from recbole_fedras.config import Config


def cell(**keys: Any) -> dict[str, Any]:
    """Keys of a short run on ``tiny``."""
    return Config(argv=COMMON).external_config_dict | {"compressor": "none"} | keys


def runs_in(folder: str) -> list[dict[str, Any]]:
    """Read the one file that a sweep leaves."""
    with lzma.open(Path(folder) / "runs.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
