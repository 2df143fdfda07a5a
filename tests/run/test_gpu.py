"""Whole runs on a GPU: the run of the CPU, to rounding; without a GPU nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import rounds_of, slow

from recbole_fedras.config import registry
from recbole_fedras.config.checkpoint import read_checkpoint

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU here"
)

COMPRESSORS = sorted({*registry.names("compressor")} - {"BinaryCodes"})
CASES = [
    *(("MF", {"compressor": name}) for name in COMPRESSORS),
    *(slow("NCF", {"compressor": name}) for name in COMPRESSORS),
    ("NCF", {"compressor": "KLT", "replica": "personal", "uplink_feedback": True}),
    ("MF", {"replica": "stale", "compressor": "TopK", "user_optimizer": "adam"}),
    ("MF", {"item_embedding": "rq", "rq_codes": 8, "warmup_rounds": 2}),
    ("GMF", {"item_embedding": "hash", "hash_rows": 20}),
    ("MF", {"upload": "gradient", "local_epochs": 1, "server_optimizer": "adam"}),
    ("MF", {"compressor": "SVD", "aggregation": "krum", "attack": "sign_flip",
            "attack_share": 0.2, "transforms": ["clip_rows"]}),
    ("MF", {"compressor": "TopK", "weight_decay": 0.01, "staleness_window": 2,
            "world": "lognormal", "deadline": 5.0}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "keys"), CASES)
def test_a_gpu_gives_the_run_of_the_cpu_to_rounding(run, model, keys):
    here = run(model, **keys, use_gpu=False)
    there = run(model, **keys, use_gpu=True)
    for before, after in zip(rounds_of(here), rounds_of(there), strict=True):
        assert float(after["loss"]) == pytest.approx(float(before["loss"]), rel=1e-3)
    one, other = map(parameters, (here, there))
    assert len(one)
    # Rounding moves what is quantised by a step here and there.
    assert (one - other).norm() <= 1e-2 * one.norm()


def parameters(result):
    """Return what the best round's server knows, one behind the other."""
    state = read_checkpoint(Path(result["run_folder"]) / "best.pth")
    found = state["simulation"]["server"]["parameters"]
    return torch.cat([found["item_table"].flatten(), found["theta"].flatten()])
