"""A dataset with the numbers that all shards of a deployment agree on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.data.catalogue import Catalogue


def renumber(
    dataset: Any, catalogue: Catalogue, first: int, n_clients: int, drop: bool
) -> int:
    """Give items their numbers of a catalogue, and users those from ``first`` on.

    Parameters
    ----------
    dataset : FederatedDataset
        As it was loaded; changed in place. Users keep their order.
    catalogue : Catalogue
    first : int
        Number of the first user's client.
    n_clients : int
        Numbers of all shards; those that are others' have empty tokens.
    drop : bool
        Whether interactions with items that are not in the catalogue are left out.

    Returns
    -------
    int
        Interactions left out.

    Raises
    ------
    DataError
        That names an item which is not in the catalogue, unless they are dropped.
    """
    user, item = dataset.uid_field, dataset.iid_field
    tokens = [str(token) for token in dataset.field2id_token[item][1:]]
    known = set(catalogue.tokens) if drop else set(tokens)
    numbers = np.zeros(1 + len(tokens), np.int64)  # 0: [PAD], and what is dropped
    kept = np.array([token in known for token in tokens], bool)
    chosen = [token for token in tokens if token in known]
    numbers[1:][kept] = 1 + catalogue.numbers_of(chosen)
    rows = dataset.inter_feat
    before = len(rows)
    rows[item] = numbers[rows[item]]
    rows[user] += first
    dataset.inter_feat = rows[rows[item] > 0].reset_index(drop=True)
    users = [str(token) for token in dataset.field2id_token[user][1:]]
    others = n_clients - first - len(users)
    _rename(dataset, item, ["[PAD]", *catalogue.tokens])
    _rename(dataset, user, ["[PAD]", *[""] * first, *users, *[""] * others])
    dataset.item_feat = dataset.user_feat = None
    dataset.features_are_elsewhere = True
    return before - len(dataset.inter_feat)


def _rename(dataset: Any, field: str, tokens: list[str]) -> None:
    names: NDArray[np.object_] = np.array(tokens, object)
    dataset.field2id_token[field] = names
    dataset.field2token_id[field] = {
        token: number for number, token in enumerate(tokens) if token
    }
