"""What is trained and tested on is what the files say, or the run ends before it."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_fedras.config import Config
from recbole_fedras.data.dataset import client_data
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.run.setup import prepare_data

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
PAIRS = "user_id:token\titem_id:token\n"
TO = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
ODD = ["NA", "nan", "null", '"Heroes"', '"open', "1.0"]


@pytest.fixture
def split(tmp_path):
    """Write files and split them; return the parts as pairs of tokens."""

    def write_and_split(files, **keys):
        folder = tmp_path / "mini"
        folder.mkdir(exist_ok=True)
        for suffix, text in files.items():
            (folder / f"mini.{suffix}").write_text(text, encoding="utf-8")
        config = Config(
            "MF",
            "mini",
            config_dict={
                "data_path": str(tmp_path),
                "topk": [1],
                "valid_metric": "Hit@1",
                "eval_args": TO,
                **keys,
            },
        )
        return [pairs(loader._dataset) for loader in prepare_data(config)]

    return write_and_split


def pairs(dataset):
    feat = dataset.inter_feat
    return [
        tuple(map(str, dataset.id2token(field, feat[field].numpy())))
        for field in (dataset.uid_field, dataset.iid_field)
    ]


def held_out(part):
    return dict(zip(*part, strict=True))


def rows_of(times, users=("u", "v", "w")):
    """Each user's rows have items i0, i1, ... and these times; nobody has the last."""
    rows = [
        (user, f"i{n + k}", time)
        for n, time in enumerate(times)
        for k, user in enumerate(users)
    ]
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def test_odd_ids_stay(split):
    rows = [(u, f"i{i}", i) for u in ODD for i in range(4)]
    rows += [(f"u{k}", name, k) for k in range(4) for name in ODD]
    text = "".join(f"{u}\t{i}\t{t}\n" for u, i, t in rows)
    found = [
        pair
        for part in split({"inter": HEADER + text})
        for pair in zip(*part, strict=True)
    ]
    assert sorted(found) == sorted((u, i) for u, i, _ in rows)


@pytest.mark.parametrize("parts", [["train", "test"], ["train", "valid", "test"]])
def test_odd_ids_stay_in_files_that_come_split(split, parts):
    """No times are needed, and with two files there is no validation."""
    rows = {part: [(u, f"i{n}") for u in ODD] for n, part in enumerate(parts)}
    rows["train"] += [(f"u{k}", name) for k in range(4) for name in ODD]
    found = split(
        {
            f"{p}.inter": PAIRS + "".join(f"{u}\t{i}\n" for u, i in rows[p])
            for p in rows
        },
        benchmark_filename=parts,
        load_col={"inter": ["user_id", "item_id"]},
    )
    for part, pairs_of_part in zip(("train", "valid", "test"), found, strict=True):
        assert list(zip(*pairs_of_part, strict=True)) == rows.get(part, [])


@pytest.mark.parametrize("field", ["user_id", "item_id"])
@pytest.mark.parametrize("suffix", ["inter", "valid.inter", "side"])
def test_missing_ids_are_refused(split, field, suffix):
    good = rows_of([1, 2, 3])
    files = {"inter": HEADER + good}
    files |= {f"{part}.inter": HEADER + good for part in ("train", "valid", "test")}
    if suffix == "side":
        suffix = field[:4]
        files[suffix] = f"{field}:token\tx:token\nu\ta\n\tb\n"
        line = 3
    else:
        files[suffix] += "\ti0\t4\n" if field == "user_id" else "u\t\t4\n"
        line = 11
    keys = {"load_col": None, "presplit_overlap": "keep"}
    if suffix == "valid.inter":
        keys["benchmark_filename"] = ["train", "valid", "test"]
    where = rf"mini\.{suffix}, line {line}: field '{field}:token' is empty"
    with pytest.raises(DataError, match=where):
        split(files, **keys)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("user_id:float\titem_id:token\ttimestamp:float\n", "'user_id:float' cannot"),
        ("user_id:token\titem_id:float\ttimestamp:float\n", "'item_id:float' cannot"),
        ("user_id:token\titem_id:token\ttimestamp:float_seq\n", "used as a time"),
        ("user_id:token\titem_id:token\ttimestamp:token_seq\n", "must be float or tok"),
    ],
)
def test_types_that_a_field_cannot_have(split, header, told):
    with pytest.raises(DataError, match=rf"mini\.inter, line 1: .*{told}"):
        split({"inter": header + rows_of([1, 2, 3])})


def test_files_of_one_dataset_agree(split):
    files = {"inter": HEADER + rows_of([1, 2, 3])}
    side = "item_id:token\ttimestamp:token\ni0\tx\n"
    with pytest.raises(DataError, match="'timestamp' is token, but float in another"):
        split(files | {"item": side}, load_col=None)
    parts = {f"{part}.inter": HEADER + rows_of([1]) for part in ("train", "test")}
    parts["test.inter"] = PAIRS + "u\ti0\n"
    with pytest.raises(DataError, match=r"mini\.test\.inter has the fields \['user_id"):
        split(parts, benchmark_filename=["train", "test"])


ISO = [f"2020-01-{day:02}" for day in (3, 1, 9, 2)]
NANOSECONDS = [1_690_000_000_000_000_000 + 20 * n for n in (3, 1, 9, 2)]


@pytest.mark.parametrize("keys", [{}, {"normalize_all": True}])
@pytest.mark.parametrize(
    ("kind", "times"), [("token", ISO), ("float", NANOSECONDS), ("float", [3, 1, 9, 2])]
)
def test_the_last_in_time_is_held_out(split, kind, times, keys):
    text = HEADER.replace("timestamp:float", f"timestamp:{kind}") + rows_of(times)
    _, valid, test = split({"inter": text}, **keys)
    assert held_out(test) == {"u": "i2", "v": "i3", "w": "i4"}
    assert held_out(valid) == {"u": "i0", "v": "i1", "w": "i2"}


@pytest.mark.parametrize("order", ["TO", "RO"])
def test_a_split_by_time_goes_by_time_in_any_order(split, order):
    """Of ten times the last two, 8 and 9, are tested."""
    way = {"split": {"TS": [0.6, 0.2, 0.2]}, "order": order, "mode": "full"}
    times = [9, 1, 4, 7, 2, 0, 8, 3, 6, 5]
    text = HEADER + rows_of(times, ["u", "v"])
    *_, test = split({"inter": text}, eval_args=way)
    last = {("u", "i0"), ("u", "i6"), ("v", "i1"), ("v", "i7")}
    assert set(zip(*test, strict=True)) == last


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rm_dup_inter": "first"},
        {"rm_dup_inter": "last"},
        {"val_interval": {"timestamp": "[1,5]"}},
        {"user_inter_num_interval": "[3,inf)"},
        {"normalize_all": True},
    ],
)
@pytest.mark.parametrize("tied_times", ["first", "last"])
def test_no_filter_changes_which_of_equal_times_is_held_out(split, keys, tied_times):
    users = [f"u{n}" for n in range(40)]
    rows = rows_of([1] * 30, users) + "x\ti0\t7\nx\ti1\t0\n"
    short = {} if "user_inter_num_interval" in keys else {"short_users": "keep"}
    *_, test = split({"inter": HEADER + rows}, tied_times=tied_times, **keys, **short)
    last = 29 if tied_times == "last" else 0
    expected = {user: f"i{last + k}" for k, user in enumerate(users)}
    assert {u: i for u, i in held_out(test).items() if u != "x"} == expected


@pytest.mark.parametrize(
    ("keep", "tied_times", "order"),
    [("last", "last", "bac"), ("first", "last", "abc"), ("last", "first", "abc")],
)
def test_of_rows_of_one_pair_the_earliest_or_latest_stays(
    split, keep, tied_times, order
):
    """Of a's tied rows the second or first of the file; c's and b's stand alone."""
    rows = [("a", 1), ("b", 2), ("a", 3), ("c", 4)] if tied_times == "last" else [
        ("a", 2), ("c", 4), ("b", 3), ("a", 1)
    ]  # fmt: skip
    text = "".join(f"{u}\t{i}\t{t}\n" for u in "uv" for i, t in rows) + "w\td\t1\n"
    train, valid, test = split(
        {"inter": HEADER + text},
        rm_dup_inter=keep,
        tied_times=tied_times,
        short_users="keep",
    )
    assert held_out(test)["u"] == order[2]
    assert held_out(valid)["u"] == order[1]
    assert held_out(train)["u"] == order[0]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"user_inter_num_interval": "[20,inf)"}, r"user_inter_num_interval='\[20,inf"),
        ({"item_inter_num_interval": "[20,inf)"}, r"item_inter_num_interval='\[20,inf"),
        ({"val_interval": {"timestamp": "[9,inf)"}}, r"val_interval={'timestamp': '\["),
    ],
)
def test_a_filter_that_leaves_nothing_is_named(split, keys, told):
    with pytest.raises(DataError, match=f"no interactions are left after {told}"):
        split({"inter": HEADER + rows_of([1, 2, 3])}, **keys)


def test_a_user_of_all_items_is_named_by_its_own_id(split):
    """Rows of the same pair count once."""
    rows = rows_of([1, 2, 3]) + "x\ti0\t1\n" * 9
    rows += "".join(f"all\ti{n}\t{n}\n" for n in range(5))
    with pytest.raises(DataError, match="user 'all' interacted with all 5 items"):
        split({"inter": HEADER + rows})


PRESPLIT = {
    "train.inter": PAIRS + "u\ti0\nu\ti1\nv\ti0\nv\ti2\nw\ti4\n",
    "valid.inter": PAIRS + "u\ti2\nv\ti3\n",
    "test.inter": PAIRS + "u\ti3\nv\ti1\n",
}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"benchmark_filename": ["train", "dev"]}, r"no file .*mini\.dev\.inter"),
        ({"user_inter_num_interval": "[2,inf)"}, "user_inter_num_interval='.* no eff"),
        ({"rm_dup_inter": "last"}, "rm_dup_inter='last' has no effect on benchmark_f"),
        ({"val_interval": {"rating": "[3,5]"}}, "val_interval={.*} has no effect"),
    ],
)
def test_what_files_that_come_split_cannot_be_used_with(split, keys, told):
    keys = {"benchmark_filename": ["train", "valid", "test"]} | keys
    with pytest.raises(DataError, match=told):
        split(PRESPLIT, **keys)


@pytest.mark.parametrize("names", ["train", ["train"]])
def test_a_split_has_two_or_three_files(names):
    with pytest.raises(ConfigError, match="must be a list of two or three names"):
        Config("MF", "mini", config_dict={"benchmark_filename": names})


def test_held_out_rows_that_are_trained_on_are_a_choice(split):
    keys = {"benchmark_filename": ["train", "valid", "test"]}
    train, *_ = split(PRESPLIT, **keys)
    assert list(zip(*train, strict=True))[-1] == ("w", "i4")
    files = dict(PRESPLIT)
    files["test.inter"] += "v\ti0\n"
    with pytest.raises(DataError, match="1 rows of the test file are in the training f"
                       "ile too, first line 4: user 'v', item 'i0'"):  # fmt: skip
        split(files, **keys)
    *_, test = split(files, **keys, presplit_overlap="keep")
    assert list(zip(*test, strict=True))[-1] == ("v", "i0")


def test_padding_is_never_trained_on(split, monkeypatch, tmp_path):
    split({"inter": HEADER + rows_of([1, 2, 3, 4])})
    keys = {"data_path": str(tmp_path), "topk": [1], "valid_metric": "Hit@1"}
    config = Config("MF", "mini", config_dict=keys | {"eval_args": TO})
    dataset = prepare_data(config)[0]._dataset
    assert client_data(dataset).items.min() == 0
    dataset.inter_feat["item_id"][0] = 0
    with pytest.raises(DataError, match="an interaction has no 'item_id'"):
        client_data(dataset)


def test_times_are_whole_ranks_of_float32(split, tmp_path):
    split({"inter": HEADER + rows_of(NANOSECONDS)})
    keys = {"data_path": str(tmp_path), "topk": [1], "valid_metric": "Hit@1"}
    config = Config("MF", "mini", config_dict=keys | {"eval_args": TO})
    parts = [loader._dataset.inter_feat["timestamp"] for loader in prepare_data(config)]
    assert [np.unique(part).tolist() for part in parts] == [[1, 2], [3], [4]]
