"""ER@k: whom a target is recommended to, counted over a full ranking of what is new."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from population import N_CLIENTS, N_ITEMS, make_data, mf

from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run import exposure as exposures
from recbole_fedras.run.exposure import exposure


def naive(scores: np.ndarray, data, targets, k: int) -> float:
    shares = []
    for target in targets:
        exposed = []
        for user in range(N_CLIENTS):
            seen = set(data.of(user).tolist())
            if target in seen:
                continue
            unseen = [item for item in range(N_ITEMS) if item not in seen]
            ranked = sorted(unseen, key=lambda item: -scores[user, item])
            exposed.append(target in ranked[:k])
        shares.append(np.mean(exposed))
    return float(np.mean(shares))


@pytest.mark.parametrize("users", [256, 5])
def test_it_is_the_share_of_users_new_to_a_target_who_are_shown_it(users, monkeypatch):
    monkeypatch.setattr(exposures, "USERS", users)
    model, data, targets = mf(), make_data(), [4, 9]
    scores = (model.user_rows() @ model.item_table().T).numpy()
    found = exposure(model, data, torch.tensor(targets), [1, 5, 10])
    assert found == {
        f"er@{k}": pytest.approx(naive(scores, data, targets, k)) for k in (1, 5, 10)
    }
    assert 0 < found["er@10"] < 1


def test_equal_scores_are_ranked_at_random_in_the_mean():
    model, data = mf(), make_data()
    model.item_embedding.weight.data[:] = 1.0
    expected = np.mean(
        [
            5 / (N_ITEMS - len(data.of(user)))
            for user in range(N_CLIENTS)
            if 4 not in data.of(user)
        ]
    )
    found = exposure(model, data, torch.tensor([4]), [5])
    assert found["er@5"] == pytest.approx(expected)


def exposure_of(*argv: str) -> dict:
    attack = ["--attack=promote", "--attack_target=['i3']"]
    result = run_recbole_fedras(argv=[*TINY, "--compressor=none", *attack, *argv])
    document = Path(result["run_folder"]) / "result.json"
    assert json.loads(document.read_text())["exposure"] == result["exposure"]
    return result["exposure"]


def test_a_run_tells_it_with_and_without_attackers(workspace):
    quiet = exposure_of("--attack_share=0")
    loud = exposure_of("--attack_share=0.4")
    assert quiet.keys() == loud.keys()
    assert quiet["er@10"] < loud["er@10"]
    assert "exposure" not in run_recbole_fedras(argv=TINY)
    assert "exposure" not in run_recbole_fedras(argv=[*TINY, "--attack=sign_flip"])
