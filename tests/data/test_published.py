"""Files as datasets are published: read as they are, or refused with what to do."""

from __future__ import annotations

import gzip
import io

import pandas as pd
import pytest

from recbole_fedras.config import Config
from recbole_fedras.data.dataset import FederatedDataset
from recbole_fedras.errors import DataError

FILMTRUST = "1 7 2\n1 8 4\n2 7 3.5\n"
AMAZON = (
    "A1,0001713353,5.0,1353369600\nA1,0002,4.0,1353369601\nA2,0002,1.0,1353369602\n"
)
GOWALLA = (
    "0\t2010-10-19T23:55:27Z\t30.23\t-97.79\t22847\n"
    "0\t2010-10-18T22:17:43Z\t30.26\t-97.76\t420315\n"
    "1\t2010-10-17T23:42:03Z\t30.25\t-97.75\t420315\n"
)
GOWALLA_HEADER = (
    "user_id:token\ttimestamp:{}\tlatitude:float\tlongitude:float\titem_id:token\n"
)
POSTGRES = "u\ti\t2012-11-20 00:00:00+00\nv\tj\t2012-11-20 00:00:00.5+01\n"
TIMED = "user_id:token\titem_id:token\ttimestamp:token\n"


@pytest.fixture
def read(tmp_path):
    """Read bytes or text as NAME.inter; return users, items and times."""

    def write_and_read(content, separator="\t", encoding="utf-8", order="TO"):
        (tmp_path / "mine").mkdir()
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "mine" / "mine.inter").write_bytes(data)
        return tokens_of(
            "mine",
            data_path=str(tmp_path),
            field_separator=separator,
            encoding=encoding,
            eval_args={"order": order},
        )

    return write_and_read


def tokens_of(dataset, **keys):
    dataset = FederatedDataset(Config(dataset=dataset, config_dict=keys))
    feat = dataset.inter_feat
    users, items = (
        dataset.id2token(field, feat[field].to_numpy()).tolist()
        for field in ("user_id", "item_id")
    )
    return users, items, feat.get("timestamp", pd.Series()).tolist()


def test_filmtrust(read):
    header = "user_id:token item_id:token rating:float\n"
    found = read(header + FILMTRUST, " ", order="RO")
    assert found == (["1", "1", "2"], ["7", "8", "7"], [])


def test_amazon(read):
    header = "user_id:token,item_id:token,rating:float,timestamp:float\n"
    users, items, times = read(header + AMAZON, ",")
    assert (users, items) == (["A1", "A1", "A2"], ["0001713353", "0002", "0002"])
    assert times == [1, 2, 3]  # ranks


def test_gowalla(read):
    users, items, times = read(GOWALLA_HEADER.format("token") + GOWALLA)
    assert (users, items) == (["0", "0", "1"], ["22847", "420315", "420315"])
    assert times == [3, 2, 1]


def test_dates_as_postgres_writes_them(read):
    assert read(TIMED + POSTGRES)[2] == [2, 1]


def test_text_of_two_bytes_a_character(read):
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    text = (header + "ü\tø\t1\n").encode("utf-16")
    assert read(text, encoding="utf-16") == (["ü"], ["ø"], [1])


@pytest.mark.parametrize(
    ("content", "separator", "message"),
    [
        (FILMTRUST, " ", "line 1: '1' is no field:type.*put one above.*or give a pand"),
        (AMAZON, ",", "line 1: 'A1' is no field:type"),
        (GOWALLA, "\t", "line 1: '0' is no field:type"),
        ("userId,movieId\n1,2\n", ",", "line 1: 'userId' is no field:type"),
        ('{"user_id": "1"}\n', "\t", "is no field:type"),
        (",user_id:token,item_id:token\n0,u,i\n", ",", "line 1: '' is no field:type"),
        ("user_id:token item_id:token\n1 7 8 9\n", " ", "line 2: every line has 4 fie"),
        (
            "user_id:token item_id:token\n1 7\n  2 8\n",
            " ",
            "line 3: there are 4 fields",
        ),
        (
            GOWALLA_HEADER.format("float") + GOWALLA,
            "\t",
            "ISO dates too, are of type t",
        ),
        (TIMED + "u\ti\t11/20/2012 00:00\n", "\t", "write it so, as pandas.to_datet"),
        (TIMED + "u\ti\tTue Nov 20 00:00:00 +0000 2012\n", "\t", "is not an ISO date"),
        (TIMED + "u\t\t2012-11-20\n", "\t", "'item_id:token' is empty; take the row"),
        ('user_id:token;item_id:token;rating:float\n"1";"2";"3"\n', ";", "is '\"3\"'"),
        ("user_id:token\titem_id:token\trating:float\nu\ti\t4,5\n", "\t", "have a poi"),
        (
            gzip.compress(b"user_id:token\titem_id:token\nu\ti\n", mtime=0),
            "\t",
            "not compressed",
        ),
    ],
)
def test_what_is_of_another_form_is_refused(read, content, separator, message):
    with pytest.raises(DataError, match=message):
        read(content, separator, order="RO")


@pytest.mark.parametrize(
    ("text", "keys", "times"),
    [
        (FILMTRUST, {"sep": " ", "names": ["user_id", "item_id", "rating"]}, []),
        (AMAZON, {"names": ["user_id", "item_id", "rating", "timestamp"]}, [1, 2, 3]),
        (GOWALLA, {"sep": "\t", "names": ["user_id", "timestamp", "latitude",
                                          "longitude", "item_id"]}, [3, 2, 1]),
    ],
)  # fmt: skip
def test_pandas_reads_them_without_a_header(text, keys, times):
    frame = pd.read_csv(io.StringIO(text), dtype={"item_id": str}, **keys)
    found = tokens_of(frame, eval_args={"order": "TO" if times else "RO"})
    expected = [line[0] for line in text.splitlines()]
    assert [user[0] for user in found[0]] == expected
    assert found[2] == times
    assert "0001713353" in found[1] or text != AMAZON
