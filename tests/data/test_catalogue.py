"""Two shards loaded from two files of users agree on every item and client."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, write_dataset

from recbole_fedras.config import Config
from recbole_fedras.data.catalogue import Catalogue, clients_of_shard, number_clients
from recbole_fedras.data.dataset import catalogue_of, client_data
from recbole_fedras.errors import DataError
from recbole_fedras.run.setup import prepare_data


def read(path):
    rows = pd.read_csv(path, sep="\t", dtype=str)
    return rows["user_id:token"].tolist(), rows["item_id:token"].tolist()


def test_shards_of_two_files_agree_on_every_item(workspace, tiny_rows):
    """Though each file has other items, in another order."""
    whole = {user: [] for user, *_ in tiny_rows}
    for user, item, *_ in tiny_rows:
        whole[user].append(item)
    halves = [
        [row for row in tiny_rows if (int(row[0][1:]) < 18) == first]
        for first in (True, False)
    ]
    for name, rows in zip("ab", halves, strict=True):
        write_dataset(workspace / "dataset", name, rows[::-1])
    catalogue = Catalogue(sorted({item for _, item, *_ in tiny_rows}, reverse=True))
    numbers = number_clients([18, 22], block=8)
    assert [own[0] for own in numbers] == [0, 24]
    found = {}
    for name, own in zip("ab", numbers, strict=True):
        users, items = read(workspace / "dataset" / name / f"{name}.inter")
        data, tokens = clients_of_shard(users, items, catalogue, own, n_clients=48)
        for number, token in zip(own, tokens, strict=True):
            found[token] = [catalogue.tokens[item] for item in data.of(number)]
        others = np.setdiff1d(np.arange(48), own)
        assert not any(len(data.of(client)) for client in others)
    assert {user: sorted(items) for user, items in whole.items()} == {
        user: sorted(items) for user, items in found.items()
    }


def test_the_simulators_catalogue_gives_its_own_numbers(workspace, tiny_rows):
    config = Config("MF", argv=TINY)
    train, *_ = prepare_data(config)
    dataset = train._dataset
    catalogue, data = catalogue_of(dataset), client_data(dataset)
    assert len(catalogue) == data.n_items == 60
    by_user = pd.DataFrame(tiny_rows, columns=["user", "item", "rating", "time"])
    for user in ("u0", "u17", "u39"):
        number = int(dataset.token2id("user_id", user)) - 1
        tokens = by_user[by_user["user"] == user]["item"].tolist()[:-2]
        assert sorted(catalogue.numbers_of(tokens)) == data.of(number).tolist()


@pytest.mark.parametrize("tokens", [["a", "b", "a"], ["a", ""], ["a", "b\nc"]])
def test_tokens_are_distinct(tokens):
    with pytest.raises(DataError, match=r"is empty, has two lines or stands twice"):
        Catalogue(tokens)


def test_bytes_that_are_no_catalogue_are_refused():
    with pytest.raises(DataError, match="not UTF-8"):
        Catalogue.from_bytes(b"\xff")


def test_every_user_has_a_number():
    with pytest.raises(DataError, match="a shard of 2 users has 1 numbers"):
        clients_of_shard(list("uv"), list("ab"), Catalogue(["a", "b"]), np.arange(1), 2)


def test_a_token_that_is_not_in_it_is_named():
    with pytest.raises(DataError, match="item 'z' is not in the catalogue of 2 items"):
        Catalogue(["a", "b"]).numbers_of(["b", "z"])
