"""Atomic files say what they say: every field to the letter, or a line refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_fedras.data import lines
from recbole_fedras.data.atomic import AtomicFile
from recbole_fedras.data.lines import Form
from recbole_fedras.errors import DataError

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
TABS = Form("\t", " ", "utf-8")


@pytest.fixture
def read(tmp_path):
    """Write a file and read all of its fields."""

    def write_and_read(content, form=TABS, required=None, time="timestamp"):
        path = tmp_path / "mini.inter"
        if isinstance(content, str):
            content = content.encode(form.encoding)
        path.write_bytes(content)
        file = AtomicFile(str(path), form)
        required = file.types if required is None else required
        return file.read(list(file.types), required, time)

    return write_and_read


IDS = ["NA", "nan", "null", "None", "N/A", "", "1.0", "007", "1e5", "True", '"Heroes"']
IDS += ['"open', "'", " blank ", "#", "\\", "-", "inf", "\u2028", "İ", "\x1c"]


def test_ids_are_text_and_only_the_empty_one_is_missing(read):
    rows = "".join(f"{name}\ti{name}\t1\t2\n" for name in IDS)
    frame = read(HEADER + rows, required=["item_id"])
    assert frame["item_id"].tolist() == [f"i{name}" for name in IDS]
    users = frame["user_id"].astype(object)
    assert users[users.notna()].tolist() == [name for name in IDS if name]
    assert users.isna().tolist() == [name == "" for name in IDS]


token = st.text(
    st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]), min_size=1
)


@given(st.lists(st.tuples(token, token), min_size=1), st.booleans())
def test_any_token_comes_back(tmp_path_factory, rows, byte_order_mark):
    path = tmp_path_factory.mktemp("any") / "x.user"
    text = "a:token\tb:token\n" + "".join(f"{a}\t{b}\n" for a, b in rows)
    encoding = "utf-8-sig" if byte_order_mark else "utf-8"
    path.write_bytes(text.encode(encoding))
    frame = AtomicFile(str(path), TABS).read(["b", "a"], ["a", "b"], None)
    assert list(zip(frame["a"], frame["b"], strict=True)) == rows


@pytest.mark.parametrize("separator", ["\t", ",", "::", "°", " "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_ends_separators_and_encodings(read, separator, encoding):
    table = [["user_id:token", "rating:float"], ["用户", "1.5"], ["用户", "2"]]
    for end in ("\n", "\r\n", "\r"):
        for last in (0, 1, 3):
            text = end.join(map(separator.join, table)) + end * last
            frame = read(text, Form(separator, " ", encoding), time=None)
            assert frame["user_id"].tolist() == ["用户", "用户"]
            assert frame["rating"].tolist() == [1.5, 2.0]


def test_a_byte_order_mark_is_no_part_of_a_field(read):
    """Elsewhere it is part of an id."""
    text = "user_id:token\n\ufeffu\nu\n"
    frame = read(text.encode("utf-8-sig"), time=None)
    assert list(frame) == ["user_id"]
    assert frame["user_id"].tolist() == ["\ufeffu", "u"]


def test_blocks_are_one_table(read, monkeypatch):
    """Categories, sequences and times of every block, and the right line."""
    monkeypatch.setattr(lines, "_BLOCK", 7)
    header = "user_id:token\ttimestamp:float\tx:token_seq\ty:float_seq\n"
    rows = [f"u{n % 3}\t{n}{'.5' * (n > 5)}\ta b{n}\t1  {n}\n" for n in range(9)]
    frame = read(header + "".join(rows))
    assert frame["user_id"].tolist() == [f"u{n % 3}" for n in range(9)]
    assert frame["timestamp"].tolist() == [n + 0.5 * (n > 5) for n in range(9)]
    assert [list(x) for x in frame["x"]] == [["a", f"b{n}"] for n in range(9)]
    assert [y.tolist() for y in frame["y"]] == [[1, n] for n in range(9)]
    with pytest.raises(DataError, match="line 8: field 'timestamp:float' is 'x'"):
        read(header + "".join(rows[:6]) + "u\tx\ta\t1\n")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("", "it is empty"),
        ("user_id,item_id", "'user_id,item_id' is no field:type"),
        ("user_id:token,item_id:token", "field_separator='\\\\t'"),
        ("user_id:token\titem_id", "'item_id' is no field:type"),
        ("user_id:token\t item_id:token", "' item_id:token' is no field:type"),
        ("user_id:Token\titem_id:token", "'user_id:Token' is no field:type"),
        ("user_id:token\titem_id:token ", "'item_id:token ' is no field:type"),
        ("user_id:token\t", "'' is no field:type"),
        (":token\titem_id:token", "':token' is no field:type"),
        ("u1\ti1\t5\t10", "token, token_seq, float, float_seq"),
        ("user_id:token\tuser_id:token", "field 'user_id' stands twice"),
    ],
)
def test_headers_that_are_refused(read, header, told):
    with pytest.raises(DataError, match=rf"mini\.inter, line 1: .*{told}"):
        read(header + "\nu\ti\n", time=None)


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_header_alone_is_no_data(read, end):
    with pytest.raises(DataError, match=r"mini\.inter is empty below its header"):
        read(HEADER.rstrip() + end)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("u\ti\t1\t2\tx\nu\tj\t1\t2\tx\n", "line 2: every line has 5 fields, but the "),
        ("u\ti\t1\t2\t\nu\tj\t1\t2\t\n", "line 2: every line has 5 fields, but the "),
        ("u\ti\t1\t2\nu\tj\t1\t2\t\n", "line 3: there are 5 fields, but the header"),
        ("u\ti\t1\t2\nu\tj\t1\n", "line 3: there are 3 fields, but the header has 4"),
        ("u\ti\t1\t2\n\nu\tj\t1\t2\n", "line 3: an empty line; only the last"),
        ("u\ti\t1\t2\n \nu\tj\t1\t2\n", "line 3: there are no separators, but the"),
        ("u i 1 2\nu i 1 2\n", "line 2: every line has no separators, but the"),
        # As many separators in all as there should be.
        ("u\ti\t1\t2\nu\tj\t1\nu\tk\t1\t2\t3\n", "line 3: there are 3 fields"),
        ("u\ti\t1\t2\nu\t\t1\t2\n", "line 3: field 'item_id:token' is empty"),
        ("u\ti\t1\t2\nu\tj\t\t2\n", "line 3: field 'rating:float' is empty"),
        ("u\ti\t1\t2\nu\tj\t1\t\n", "line 3: field 'timestamp:float' is empty"),
        ("u\ti\t1\t2\nu\t\0j\t1\t2\n", "line 3: a byte of value 0"),
    ],
)
def test_rows_that_are_refused(read, rows, told):
    with pytest.raises(DataError, match=rf"mini\.inter, {told}"):
        read(HEADER + rows)


NO_NUMBERS = ["-", "NA", "nan", "inf", "-Infinity", "1e999", "1,600,000", "1_0", "0x10"]
NO_NUMBERS += ["True", "2020-01-01", "1.2.3", "\uff11\uff12", "--1", "1e", "."]


@pytest.mark.parametrize("field", [2, 3])
@pytest.mark.parametrize("text", NO_NUMBERS)
def test_numbers_that_are_refused(read, field, text):
    row = ["u", "i", "1", "2"]
    row[field] = text
    name = HEADER.split("\t")[field].strip()
    with pytest.raises(DataError, match=f"line 4: field '{name}' is '{text}', which"):
        read(HEADER + "u\ti\t1\t2\n" * 2 + "\t".join(row) + "\n")


@pytest.mark.parametrize("text", ["a", "1 nan", "1 x 2", "inf", "1_0", "\uff11"])
def test_numbers_of_sequences_that_are_refused(read, text):
    with pytest.raises(DataError, match="line 3: field 'v:float_seq' is"):
        read(f"i:token\tv:float_seq\na\t1 2.5\nb\t{text}\n", time=None)
    with pytest.raises(DataError, match="line 2: field 'v:float_seq' is ''"):
        read("i:token\tv:float_seq\na\t1,,2\n", Form("\t", ",", "utf-8"), time=None)


@pytest.mark.parametrize("field", [2, 3])
def test_truth_values_are_no_numbers(read, field):
    """Of which pandas makes 1 and 0, if nothing else stands in a column."""
    row = ["u", "i", "1", "2"]
    row[field] = "True"
    with pytest.raises(DataError, match=r"line 2: field '.*:float' is 'True', which"):
        read(HEADER + "\t".join(row) + "\n")


@pytest.mark.parametrize("block", [7, 2**24])
def test_an_empty_line_between_blocks_is_refused(read, monkeypatch, block):
    monkeypatch.setattr(lines, "_BLOCK", block)
    with pytest.raises(DataError, match="line 3: an empty line"):
        read(HEADER + "u\ti\t1\t2\n\n\n\n\n\n\n\n\n\nu\ti\t1\t2\n")


def test_bytes_of_another_encoding_are_refused(read):
    content = (HEADER + "u\ti\t1\t2\n用\ti\t1\t2\n").encode("gbk")
    with pytest.raises(DataError, match=r"line 3: not in encoding='utf-8'.*; set enco"):
        read(content)
    with pytest.raises(DataError, match="encoding='utf-88' is not an encoding"):
        read(HEADER.encode(), Form("\t", " ", "utf-88"))


@pytest.mark.parametrize("separator", ["", "\n"])
def test_separators_that_separate_nothing(read, separator):
    with pytest.raises(DataError, match=r"field_separator=.* separates nothing"):
        read(HEADER.encode(), Form(separator, " ", "utf-8"))
    with pytest.raises(DataError, match=r"seq_separator=.* separates nothing"):
        read(HEADER.encode(), Form("\t", separator, "utf-8"))


def times(read, texts, kind="float"):
    rows = "".join(f"u\t{text}\n" for text in texts)
    return read(f"user_id:token\ttimestamp:{kind}\n" + rows)["timestamp"].to_numpy()


@pytest.mark.parametrize(
    "texts",
    [
        ["1690000000000000020", "1690000000000000000", "1690000000000000040"],
        ["9007199254740993", "9007199254740992", "-9007199254740993"],
        ["1690000000.1234567", "1690000000.123456", "1.7e9"],
        ["1.0", "2", "30"],
    ],
)
def test_times_are_exact(read, texts):
    values = [value.item() for value in times(read, texts)]
    assert values == [int(t) if t.lstrip("-").isdigit() else float(t) for t in texts]


@pytest.mark.parametrize(
    "texts",
    [
        ["1690000000.000000000", "1690000000.000000020"],
        ["1690000000.0000002", "1690000000.0000003"],
        ["1", "1690000000000000021.0"],
        ["1", "99999999999999999999"],
    ],
)
def test_times_that_float64_cannot_tell_apart_are_refused(read, texts):
    with pytest.raises(DataError, match="line 3: TIME_FIELD='timestamp' has more dig"):
        times(read, texts)


def test_times_of_both_kinds_in_two_blocks(read, monkeypatch):
    monkeypatch.setattr(lines, "_BLOCK", 1)
    assert times(read, ["1", "2.5", "3"]).tolist() == [1, 2.5, 3]
    with pytest.raises(DataError, match="has fractions beside whole numbers above"):
        times(read, ["1690000000000000020", "2.5"])


def test_iso_dates_are_times(read):
    day = 24 * 3600 * 10**9
    found = times(read, ["1970-01-02", "1970-01-01 00:00:01.5", "1969-12-31T00:00"],
                  "token")  # fmt: skip
    assert found.tolist() == [day, 15 * 10**8, -day]
    zoned = ["1970-01-02T00:00:00Z", "1970-01-02T01:00:00+02:00"]
    assert np.diff(times(read, zoned, "token")).tolist() == [-3600 * 10**9]


@pytest.mark.parametrize(
    "texts",
    [
        ["1970-01-02", "1600000000"],
        ["1970-01-02", "2 January 1970"],
        ["1970-01-02", "1970-02-30"],
        ["1970-01-02T00:00:00", "1970-01-02T00:00:00Z"],
        ["1970-01-02T00:00:00Z", "1970-01-02T00:00:00"],
        ["1970-01-02", "0001-01-01"],
    ],
)
def test_other_times_of_tokens_are_refused(read, texts):
    with pytest.raises(DataError, match=r"line 3: TIME_FIELD=.* call numbers timest"):
        times(read, texts, "token")
