"""Output goes to streams that lack characters, as those of Windows do."""

from __future__ import annotations

import io
import sys

import pytest

from recbole_fedras.run.console import adapt_output

TABLE = "┌─┬─┐\n│a│é│ ± 1"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", TABLE),
        ("cp1252", "+-+-+\n|a|é| ± 1"),
        ("ascii", "+-+-+\n|a|?| +- 1"),
    ],
)
def test_lines_of_tables_are_drawn_with_what_there_is(encoding, written, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="\n")
    monkeypatch.setattr(sys, "stdout", stream)
    adapt_output()
    print(TABLE, end="", flush=True)
    assert stream.buffer.getvalue().decode(encoding) == written


def test_other_streams_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    adapt_output()
    print(TABLE, end="")
    assert sys.stdout.getvalue() == TABLE
