"""Global random generators, which only ``eval_candidates: recbole`` draws from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recbole_fedras.config.checkpoint import plain


def random_state() -> dict[str, Any]:
    """Return the state of torch's and numpy's generators, as plain types."""
    state = dict(np.random.get_state(legacy=False))  # noqa: NPY002 - RecBole's
    keys = torch.from_numpy(state["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "numpy": plain(state | {"state": state["state"]["pos"]}),
        "numpy_keys": keys,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    inner = {"key": keys, "pos": state["numpy"]["state"]}
    np.random.set_state(state["numpy"] | {"state": inner})  # noqa: NPY002
