"""A DataFrame trains as the file of its rows would, or is refused in a clear line."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from recbole_fedras import Config, load_run, run_recbole_fedras
from recbole_fedras.__main__ import main
from recbole_fedras.config.sources import literal
from recbole_fedras.data.dataset import FederatedDataset
from recbole_fedras.data.frame import Frame
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.quick_start import objective_function

COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
KEYS = {
    key: literal(value)
    for key, _, value in (argument[2:].partition("=") for argument in TINY[1:])
} | {"show_progress": False}


@pytest.fixture
def frame(tiny_rows):
    return pd.DataFrame(tiny_rows, columns=COLUMNS)


def train(frame, **keys):
    return run_recbole_fedras(dataset=frame, config_dict=KEYS | keys)


def test_it_trains_as_the_file_does(workspace, frame):
    from_file = run_recbole_fedras(dataset="tiny", config_dict=KEYS)
    shuffled_index = frame.set_index(np.arange(len(frame))[::-1])
    for given in (frame, shuffled_index, frame.astype({"user_id": "category"})):
        result = train(given)
        assert result["test_result"] == from_file["test_result"]
        assert result["communication"] == from_file["communication"]
    assert result["dataset"] == "DataFrame"


def test_a_trial_takes_it_among_its_keys(workspace, frame):
    result = objective_function(KEYS | {"dataset": frame})
    assert result["test_result"] == train(frame)["test_result"]


def test_columns_may_be_called_otherwise(workspace, frame):
    other = frame.set_axis(["who", 0, "stars", "when"], axis=1)
    names = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": 0, "TIME_FIELD": "when"}
    assert train(other, **names)["test_result"] == train(frame)["test_result"]


def test_a_run_is_taken_up_with_the_same_frame(workspace, frame, capsys):
    whole = train(frame, epochs=4)
    folder = train(frame, epochs=2)["run_folder"]
    result = train(frame, epochs=4, resume=folder)
    assert result["test_result"] == whole["test_result"]
    assert len(load_run(folder, dataset=frame).recommend(["u1"], 5)) == 5
    changed = frame.assign(item_id=frame["item_id"].to_numpy()[::-1])
    with pytest.raises(DataError, match="other data: what is in dataset='DataFrame'"):
        load_run(folder, dataset=changed)
    with pytest.raises(DataError, match=r"give it again, as .*load_run\(folder, dat"):
        load_run(folder)
    assert main([f"--resume={folder}"]) == 2
    assert "give it again" in capsys.readouterr().err
    assert "DataFrame" in (Path(folder) / "config.yaml").read_text(encoding="utf-8")


def tokens(values):
    frame = pd.DataFrame({"item_id": values})
    return Frame(frame, ["item_id"]).read(["item_id"], ["item_id"], None)["item_id"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["NA", "007", "a\tb", "[x]", " "], ["NA", "007", "a\tb", "[x]", " "]),
        ([2**60 + 1, 7, -1], [str(2**60 + 1), "7", "-1"]),
        (pd.array([3, 1], "Int64"), ["3", "1"]),
        (pd.array(["q", "p"], "string"), ["q", "p"]),
        (pd.Categorical(["b", "a"], ["a", "b", "c"]), ["b", "a"]),
        ([1.5, 2.0], ["1.5", "2.0"]),
        (np.array([200], np.uint8), ["200"]),
        ([2**70], [str(2**70)]),
    ],
)
def test_ids_of_any_type_are_tokens(values, expected):
    assert tokens(values).tolist() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None], "row 1: 'item_id' is missing"),
        (["a", ""], "row 1: 'item_id' is missing"),
        ([1.0, np.nan], "row 1: 'item_id' is missing"),
        (pd.array([1, None], "Int64"), "row 1: 'item_id' is missing"),
        ([1, "1"], "values of type int, str; make them all strings"),
        ([1, True], "values of type bool, int"),
        ([b"x"], "values of type bytes"),
        ([["a"], ["b"]], r"values that are no ids \(unhashable"),
        (pd.Categorical([1, "1"]), "values of which two are written alike"),
        ([], "DataFrame is empty: no rows"),
    ],
)
def test_what_is_no_id_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        tokens(values)


def times(values):
    frame = pd.DataFrame({"timestamp": values})
    return Frame(frame, []).read(["timestamp"], ["timestamp"], "timestamp")["timestamp"]


DAY = 86_400 * 10**9


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2**53 + 1, 2**53 + 2], [2**53 + 1, 2**53 + 2]),
        ([0.5, 0.25], [0.5, 0.25]),
        (pd.to_datetime(["1970-01-03", "1970-01-02"]), [2 * DAY, DAY]),
        (pd.to_datetime(["1970-01-02"]).astype("datetime64[s]"), [DAY]),
        (pd.to_datetime(["1970-01-02"]).tz_localize("Etc/GMT-1"), [DAY - DAY // 24]),
        (["1970-01-02", "1970-01-03T00:00:01"], [DAY, 2 * DAY + 10**9]),
        ([datetime.date(1970, 1, 2)], [DAY]),
        (pd.array([5, 4], "Int64"), [5, 4]),
    ],
)
def test_times_are_exact(values, expected):
    assert times(values).tolist() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2 January"], "row 0: 'timestamp' is '2 January', which is not an ISO date"),
        ([1.0, np.inf], "row 1: 'timestamp' is not finite"),
        (pd.to_datetime(["1970-01-02", None]), "row 1: 'timestamp' is missing"),
        (np.array([1, 2**63], np.uint64), "row 1: 'timestamp' is 9223372036854775808"),
        (np.array(["3000-01-01"], "datetime64[s]"), "TIME_FIELD='timestamp'"),
    ],
)
def test_times_that_have_no_order_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        times(values)


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (lambda f: f.drop(columns="item_id"), {}, "ITEM_ID_FIELD='item_id' is not amo"),
        (lambda f: f.drop(columns="timestamp"), {}, "TIME_FIELD='timestamp'.*order to"),
        (lambda f: f.rename(columns={"user_id": "who"}), {}, r"of \['who', 'item_id'"),
        (lambda f: f.assign(rating=np.nan), {}, "row 0: 'rating' is missing"),
        (lambda f: f.set_axis(["user_id"] * 4, axis=1), {}, "'user_id' stands twice"),
        (lambda f: f, {"benchmark_filename": ["a", "b"]}, "benchmark_filename=.*DataF"),
        (lambda f: f, {"load_col": {"item": ["item_id"]}}, "load_col=.*DataFrame"),
    ],
)
def test_what_is_missing_is_named(frame, change, keys, message):
    with pytest.raises(DataError, match=message):
        FederatedDataset(Config(dataset=change(frame), config_dict=keys))


def test_without_times_rows_are_held_out_at_random(workspace, frame):
    pairs = frame[["user_id", "item_id"]]
    at_random = {"split": {"LS": "valid_and_test"}, "order": "RO", "mode": "uni20"}
    assert train(pairs, eval_args=at_random)["rounds"] == 3


def test_a_name_is_no_frame(workspace):
    with pytest.raises(ConfigError, match="dataset="):
        run_recbole_fedras(dataset=[1, 2])
    with pytest.raises(DataError, match="give it again"):
        run_recbole_fedras(dataset="DataFrame")
