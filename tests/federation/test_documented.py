"""The server and two shards of docs/halves.md, word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_server_and_shards_of_the_docs_run(tmp_path):
    text = (ROOT / "docs" / "halves.md").read_text(encoding="utf-8")
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "serve" in b
    )
    (tmp_path / "halves_example.py").write_text(block, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "halves_example.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
