"""Tables: numbers are shown as they are read, and written as they are."""

from __future__ import annotations

import csv

import pytest

from recbole_fedras.experiments.tables import Table


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("p", 2e-19, "2e-19"),
        ("p", 0.03125, "0.031"),
        ("p", 0.0, "< 1e-300"),
        ("p", 1.0, "1"),
        ("hit@10", 0.5, "0.5000"),
        ("sd", 0.0005, "5.00e-04"),
        ("difference", 0.01, "+0.0100"),
        ("uplink MB", 1234.56, "1,234.6"),
        ("CR wire", 0.9375, "93.75%"),
        ("learning rate", 0.05, "0.05"),
        ("paper", None, ""),
        ("method", "SVD & co", "SVD & co"),
        ("diverged", 2, "2"),
    ],
)
def test_numbers_are_shown_by_their_column(column, value, shown):
    line = Table("t", [{column: value}]).shown("github").splitlines()[-1]
    assert line.strip("| ") == shown


def test_a_table_is_written_in_full_and_shown_with_deviations(tmp_path, capsys):
    rows = [
        {
            "method": "A & B",
            "hit@10": 0.123456,
            "hit@10 sd": 0.01,
            "hit@10 low": 0.1,
            "hit@10 high": 0.15,
            "p": 2e-19,
            "other code": "",
        },
        {
            "method": "C",
            "hit@10": 0.25,
            "hit@10 sd": None,
            "hit@10 low": None,
            "hit@10 high": None,
            "p": 1.0,
            "other code": "",
        },
    ]
    Table("Mine", rows, "A note.").write(tmp_path)
    markdown = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out == markdown
    assert markdown.startswith("Mine\n\n| method")
    assert "0.1235 ± 0.0100 [0.1000, 0.1500]" in markdown
    assert "other code" not in markdown
    assert markdown.endswith("\n\nA note.\n")
    assert r"A \& B" in (tmp_path / "table.tex").read_text()
    assert "A &amp; B" in Table("Mine", rows).shown("html")
    with (tmp_path / "table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["hit@10"] == "0.123456"
    assert second["hit@10 sd"] == ""


def test_a_table_is_printed_as_one_pastes_it():
    rows = [
        {"method": "A & B", "hit@10": 0.5, "hit@10 sd": None, "CR charged": 0.75},
        {"method": "C", "hit@10": "failed", "hit@10 sd": "", "CR charged": ""},
    ]
    table = Table("ml-100k", rows, "C failed, seed 1: why")
    latex = table.printed("latex").splitlines()
    assert (latex[0], latex[-1]) == ("% ml-100k", "% C failed, seed 1: why")
    assert latex[5].split() == ["A", "\\&", "B", "&", "0.5000", "&", "75.00\\%", "\\\\"]
    assert table.printed("csv").splitlines() == [
        "method,hit@10,hit@10 sd,CR charged", "A & B,0.5,,0.75", "C,failed,,"
    ]  # fmt: skip
    markdown = table.printed("markdown").splitlines()
    assert markdown[0] == "ml-100k"
    assert markdown[5].split("|")[2].strip() == "failed"
    assert markdown[-1] == "C failed, seed 1: why"
