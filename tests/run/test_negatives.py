"""Held-out items are ranked among what a file lists, or the file is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import write_dataset

from recbole_fedras.config import Config
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.run.negatives import DrawnNegatives
from recbole_fedras.run.setup import prepare_data

HEADER = "user_id:token\titem_id:token"
TRAIN = [("0", "a"), ("0", "b"), ("1", "c"), ("2", "d"), ("2", "e"), ("2", "f")]
TEST = [("0", "c"), ("1", "a"), ("2", "g")]
LINES = ["(0,c)\td\te", "(1,a)\tb\td", "(2,g)\ta\tb"]


@pytest.fixture
def candidates(tmp_path):
    """Split as NCF's files are; return each user's candidates, and the held-out."""

    def prepare(lines=LINES, test=TEST, valid=None, **keys):
        parts = {"train": TRAIN, "test": test}
        if valid:
            parts = {"train": TRAIN, "valid": [("0", "g")], "test": test}
            (tmp_path / "ncf").mkdir(exist_ok=True)
            (tmp_path / "ncf" / "ncf.valid.negative").write_text(valid)
        for name, rows in parts.items():
            write_dataset(tmp_path, "ncf", rows, HEADER)
            (tmp_path / "ncf" / "ncf.inter").rename(
                tmp_path / "ncf" / f"ncf.{name}.inter"
            )
        if lines is not None:
            file = tmp_path / "ncf" / "ncf.test.negative"
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        given = {
            "data_path": str(tmp_path), "benchmark_filename": list(parts),
            "eval_candidates": "file", "eval_args": {"mode": "uni2"}, "topk": [1],
            "valid_metric": "NDCG@1",
        }  # fmt: skip
        loaders = prepare_data(Config("MF", "ncf", config_dict=given | keys))
        return [found(loader) for loader in loaders[1:]]

    return prepare


def found(loader):
    dataset, result = loader._dataset, {}
    for interaction, _, positive_u, positive_i in loader:
        users = dataset.id2token("user_id", interaction["user_id"].numpy())
        for row, user in enumerate(users):
            tokens = dataset.id2token("item_id", interaction["item_id"][row].numpy())
            held_out = positive_i[positive_u == row].numpy()
            rest = sorted(set(np.delete(tokens, held_out)) - {"[PAD]"})
            result[user] = sorted(tokens[held_out]), rest
    return result


EXPECTED = {
    "0": (["c"], ["d", "e"]),
    "1": (["a"], ["b", "d"]),
    "2": (["g"], ["a", "b"]),
}


def test_candidates_are_those_of_the_file(candidates):
    assert candidates()[1] == EXPECTED
    assert candidates([line.replace(",", ", ") for line in LINES])[1] == EXPECTED
    assert candidates(["\ufeff" + LINES[0], *LINES[1:]])[1] == EXPECTED


def test_an_item_named_twice_counts_once(candidates):
    assert candidates(["(0,c)\td\td", *LINES[1:]])[1]["0"] == (["c"], ["d"])


def test_a_user_with_two_lines_has_the_negatives_of_both(candidates):
    lines = [*LINES, "(0,f)\te\tg"]
    expected = ["c", "f"], ["d", "e", "g"]
    assert candidates(lines, [*TEST, ("0", "f")])[1]["0"] == expected


def test_validation_has_its_own_file_or_draws(candidates):
    assert candidates(valid="(0,g)\td\tf\n")[0] == {"0": (["g"], ["d", "f"])}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("(0,c)\td\tx", r"test\.negative, line 1: item 'x' is not in the dataset"),
        ("(0,c)\td\tb", "line 1: user '0' interacted with item 'b', which is no neg"),
        ("(0,c)\td\tc", "line 1: user '0' interacted with item 'c'"),
        ("(0,b)\td\te", r"line 1: \(0,b\) is not held out here, or stands twice"),
        ("(9,b)\td\te", r"line 1: \(9,b\) is not held out here"),
        ("(1,a)\tb\td", r"line 2: \(1,a\) is not held out here, or stands twice"),
        ("(0,c)\td", "line 1: 1 negatives, but eval_args mode is uni2; set it to uni1"),
        ("0\tc\td\te", r"line 1: it must read \(user,item\) and then negatives"),
        ("(0,c)\td\t", r"line 1: it must read \(user,item\)"),
        ("", "line 1: it must read"),
    ],
)
def test_lines_of_something_else_are_refused(candidates, line, message):
    with pytest.raises(DataError, match=message):
        candidates([line, *LINES[1:]])


def test_files_of_something_else_are_refused(candidates):
    with pytest.raises(DataError, match=r"has no line for 1 held-out.*\(0,c\)"):
        candidates(LINES[1:])
    with pytest.raises(ConfigError, match="eval_candidates='file' is not allowed"):
        candidates(eval_args={"mode": "full"})


def test_a_file_that_is_not_there_is_named(candidates):
    with pytest.raises(DataError, match=r"there is no file .*ncf\.test\.negative"):
        candidates(None)


def test_a_run_on_a_single_file_takes_them_too(run, workspace, tiny_rows):
    last = {user: item for user, item, *_ in tiny_rows}
    own = {user: {i for u, i, *_ in tiny_rows if u == user} for user in last}
    lines = []
    for user, item in last.items():
        never = [f"i{n}" for n in range(60) if f"i{n}" not in own[user]]
        lines.append("\t".join([f"({user},{item})", *never[:20]]))
    file = workspace / "dataset" / "tiny" / "tiny.test.negative"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert 0 <= run(eval_candidates="file")["test_result"]["hit@10"] <= 1


@pytest.mark.parametrize("n_held_out", [1, 2])
def test_drawn_ones_are_those_of_a_list_of_all_others(n_held_out):
    """Without the list, which would take as long as there are items, for each user."""
    interacted = {7: np.array([1, 2, 5, 19, 39])}
    dataset = SimpleNamespace(item_num=40)
    drawn = DrawnNegatives(dataset, interacted, 20)(
        7, n_held_out, np.random.default_rng(3)
    )
    others = np.setdiff1d(np.arange(1, 40), interacted[7])
    count = min(20 * n_held_out, len(others))
    expected = np.random.default_rng(3).choice(others, count, replace=False)
    np.testing.assert_array_equal(drawn, expected)
