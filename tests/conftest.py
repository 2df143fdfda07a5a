"""Small datasets and updates that the tests share."""

from __future__ import annotations

import csv
import importlib.util
import os
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from population import make_data

import recbole_fedras
from recbole_fedras.compressor import Budget, RoundContext, RowUpdate
from recbole_fedras.data.clients import ClientData

settings.register_profile("unhurried", deadline=None)  # the first example compiles
settings.load_profile("unhurried")

ROOT = Path(__file__).parents[1]
N_ITEMS, DIM = 60, 8
TINY = [
    "--dataset=tiny",
    "--epochs=3",
    "--client_fraction=0.25",
    "--embedding_size=8",
    "--compression_rate=0.75",
    "--eval_step=1",
    "--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO', 'mode': 'uni20'}",
]
COMMON = [argument for argument in TINY if "compression_rate" not in argument]
BASE = torch.randn(N_ITEMS, DIM, generator=torch.Generator().manual_seed(5))
CTX = RoundContext(round=3, seed=7, n_items=N_ITEMS, dim=DIM, sender=5, base=BASE)


def modules() -> Iterator[str]:
    """Names of all modules; of those that deploy only where Flower is installed."""
    for module in pkgutil.walk_packages(recbole_fedras.__path__, "recbole_fedras."):
        deploys = module.name.startswith("recbole_fedras.deploy.")
        if importlib.util.find_spec("flwr") or not deploys:
            yield module.name


def slow(*values: Any) -> Any:
    """Parameters of a test that belong to the slow tier."""
    return pytest.param(*values, marks=pytest.mark.slow)


def long(*values: Any) -> Any:
    """Parameters of a test that belong to the long tier."""
    return pytest.param(*values, marks=pytest.mark.long)


def make_update(n_rows: int, seed: int = 0, scale: float = 1.0) -> RowUpdate:
    """Random update whose rows have unequal norms."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(N_ITEMS, n_rows, replace=False))
    rows = rng.standard_normal((n_rows, DIM)) * rng.lognormal(0, 1, (n_rows, 1))
    return RowUpdate(torch.from_numpy(ids), torch.from_numpy(rows * scale).float())


def budget(compression_rate: float) -> Budget:
    """Budget of the tests' table."""
    return Budget(N_ITEMS, DIM, compression_rate)


def write_dataset(
    folder: Path, name: str, rows: list[tuple[Any, ...]], header: str | None = None
) -> None:
    """Write an atomic file."""
    header = header or "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / name).mkdir(exist_ok=True)
    lines = ["\t".join(map(str, row)) for row in rows]
    text = "\n".join([header, *lines]) + "\n"
    (folder / name / f"{name}.inter").write_text(text, encoding="utf-8")


def rounds_of(result: dict[str, Any]) -> list[dict[str, str]]:
    """Lines of a run's ``rounds.csv``."""
    with (Path(result["run_folder"]) / "rounds.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def data() -> ClientData:
    """Return what the clients of ``population`` interacted with."""
    return make_data()


@pytest.fixture(scope="session")
def tiny_rows() -> list[tuple[Any, ...]]:
    """40 users x 60 items in two taste groups, 8 to 15 interactions each."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(40):
        liked = rng.permutation(30)[: rng.integers(8, 16)] + 30 * (user % 2)
        rows += [
            (f"u{user}", f"i{item}", 5, 1_000_000_000 + 7 * step)
            for step, item in enumerate(liked)
        ]
    return rows


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_rows: list[tuple[Any, ...]]
) -> Path:
    """Empty working folder with the dataset ``tiny`` in ``dataset/``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset").mkdir()
    write_dataset(tmp_path / "dataset", "tiny", tiny_rows)
    return tmp_path


@pytest.fixture
def run(workspace: Path) -> Callable[..., dict[str, Any]]:
    """Run on ``tiny`` with a few rounds; keywords are config keys.

    Keys of methods that are not chosen are left out, as sweeps do.
    """
    from recbole_fedras.config import Config
    from recbole_fedras.quick_start import run_recbole_fedras

    def run_tiny(model: str = "MF", saved: bool = True, **keys: Any) -> dict[str, Any]:
        defaults = {
            "epochs": 4,
            "client_fraction": 0.25,
            "embedding_size": DIM,
            "compression_rate": 0.75,
            "eval_step": 2,
            "show_progress": False,
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "order": "TO",
                "group_by": "user",
                "mode": "uni20",
            },
        }
        given = defaults | keys
        without_effect = Config(model, "tiny", config_dict=given).unused
        for key in without_effect:
            del given[key]
        return run_recbole_fedras(model, "tiny", config_dict=given, saved=saved)

    return run_tiny


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run cells here, as a worker would, and count them."""
    from recbole_fedras.experiments import sweep

    started: list[dict[str, Any]] = []

    def outcomes(run: Any, missing: dict[str, Any], n_jobs: int) -> Iterator[Any]:
        for name, cell in missing.items():
            started.append(cell)
            yield name, run(name, cell)

    monkeypatch.setattr(sweep, "_outcomes", outcomes)
    return started


def shared_data() -> Path | None:
    """Folder with ML-1M and Lastfm-2K as atomic files, if this machine has one."""
    candidates = [os.environ.get("RECBOLE_DATA"), "../shared/data"]
    for candidate in filter(None, candidates):
        path = ROOT / candidate
        if (path / "ml-1m" / "ml-1m.inter").is_file():
            return path
    return None
