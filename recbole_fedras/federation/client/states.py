"""States of shards: joined to that of one shard with everybody, and taken apart."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.federation.grid import joined_grid
from recbole_fedras.federation.protocol import Ints

State = dict[str, Any]

_BY_PLACE = ("user_rows", "user_states")
_BY_CLIENT = ("version_of", "pending")
_TABLES = {"slots", "slot_of_client"}


def part_of(state: State, clients: Ints) -> State:
    """Take the state of some clients out of ``Shard.state_dict`` of all.

    Parameters
    ----------
    state : dict
        Of a shard with everybody.
    clients : ndarray of int64
    """
    part: State = _restricted(state, set(clients.tolist()))
    for key in _BY_PLACE:
        if state[key] is not None:
            part[key] = state[key][torch.from_numpy(clients)]
    return part


def _restricted(value: Any, clients: set[int]) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == _TABLES:
        mine = {c: slot for c, slot in value["slot_of_client"].items() if c in clients}
        return _only_used(value["slots"], mine)
    return {
        key: {c: of for c, of in entry.items() if c in clients}
        if key in _BY_CLIENT
        else _restricted(entry, clients)
        for key, entry in value.items()
    }


def _only_used(slots: Tensor, slot_of_client: Mapping[int, int]) -> State:
    """Leave out what no client has; whoever shared a slot still does."""
    used = sorted({0, *slot_of_client.values()})
    places = {slot: place for place, slot in enumerate(used)}
    number = {client: places[slot] for client, slot in slot_of_client.items()}
    return {"slots": slots[used], "slot_of_client": number}


def joined(states: Sequence[State], clients: Sequence[Ints]) -> State:
    """Join the states of shards to ``Shard.state_dict`` of one with everybody.

    Parameters
    ----------
    states : sequence of dict
    clients : sequence of ndarray of int64
        Of each shard; together all.
    """
    # Networks and shared tables: of the shard that a message has reached last.
    newest = max(states, key=lambda state: state["replicas"]["theta_version"])
    whole: State = _joined(newest, states)
    order = torch.from_numpy(np.argsort(np.concatenate(clients)))
    for key in _BY_PLACE:
        if newest[key] is not None:
            whole[key] = torch.cat([state[key] for state in states])[order]
    return whole


def _joined(value: Any, others: Sequence[Any]) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == _TABLES:
        slots = torch.cat([tables["slots"] for tables in others])
        firsts = np.cumsum([0, *(len(tables["slots"]) for tables in others)]).tolist()
        moved = [
            {client: first + slot for client, slot in tables["slot_of_client"].items()}
            for first, tables in zip(firsts[:-1], others, strict=True)
        ]
        return _only_used(slots, dict(ChainMap(*moved)))
    return {
        key: _joined_entry(key, entry, [other[key] for other in others])
        for key, entry in value.items()
    }


def _joined_entry(key: str, entry: Any, others: Sequence[Any]) -> Any:
    if key in _BY_CLIENT:
        return dict(ChainMap(*others))
    if key == "grids":  # of each tier, and of the network
        return [joined_grid(grids) for grids in zip(*others, strict=True)]
    return _joined(entry, others)
