"""What importing and running leave behind in other packages: nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

import recbole_fedras

_HEAVY = ("numpy", "pandas", "recbole", "torch")


def in_a_fresh_process(code: str, cwd: Path) -> str:
    """Run code in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("code", "spared"),
    [
        ("import recbole_fedras", _HEAVY),
        ("import recbole_fedras.errors", _HEAVY),
        ("import recbole_fedras.wire.bits", ("pandas", "recbole", "torch")),
        ("from recbole_fedras import Payload", ("pandas", "recbole", "torch")),
        ("from recbole_fedras import Compressor", ("pandas", "recbole")),
    ],
)
def test_pure_modules_import_nothing_heavy(code, spared, tmp_path):
    code += f"; import sys; print([name for name in {spared} if name in sys.modules])"
    assert in_a_fresh_process(code, tmp_path) == "[]"


@pytest.mark.parametrize(
    "command",
    ["--list", "--help", *(f"{name} --help" for name in (
        "compare", "prepare", "rate-distortion", "reproduce"
    ))],
)  # fmt: skip
def test_help_and_list_import_nothing_heavy(command, tmp_path):
    code = f"""
import sys
from recbole_fedras.__main__ import main
try:
    assert main({command.split()}) == 0
except SystemExit as ended:
    assert not ended.code
print([name for name in {_HEAVY} if name in sys.modules])
"""
    assert in_a_fresh_process(code, tmp_path).splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_run_leaves_other_packages_as_they_were(workspace):
    (workspace / "mine.py").write_text(
        "from recbole_fedras.compressor.svd import SVD\nclass Mine(SVD):\n    pass\n"
    )
    code = f"""
import sys, warnings
from types import ModuleType
import numpy as np

def of_numpy():
    return {{name for name, value in vars(np).items() if type(value) is not ModuleType}}

names = of_numpy()
import hyperopt, yaml
import recbole.data.dataset, recbole.trainer
from recbole.trainer import Trainer, hyper_tuning
from scipy.sparse import dok_matrix
import recbole_fedras.quick_start
from recbole_fedras.config import compat

def state():
    return [
        {{name: id(value) for name, value in vars(owner).items() if name[0] != "_"
          or name == "_update"}}
        for owner in (recbole.data.dataset, Trainer, hyper_tuning, dok_matrix, hyperopt)
    ] + [
        of_numpy(),
        list(sys.path),
        list(warnings.filters),
        {{key: len(rules)
          for key, rules in yaml.FullLoader.yaml_implicit_resolvers.items()}},
    ]

before = state()
assert before[5] == names, before[5] ^ names
recbole_fedras.quick_start.run_recbole_fedras(
    config_dict={{"compressor_class": "mine.Mine", "show_progress": False}}, argv={TINY}
)
with compat.hyper_tuning(), compat.recbole(), compat.recbole():
    assert "float" in vars(np)
    assert hyper_tuning.exhaustive_search is not before[2]["exhaustive_search"]
for one, other in zip(before, state(), strict=True):
    assert one == other, (one, other)
print("clean")
"""
    path = f"import sys; sys.path.remove('') if '' in sys.path else None\n{code}"
    assert in_a_fresh_process(path, workspace).endswith("clean")


def test_shims_end_with_an_error():
    import numpy as np

    from recbole_fedras.config import compat

    before = set(vars(np))
    with pytest.raises(ZeroDivisionError), compat.recbole():
        raise ZeroDivisionError
    assert set(vars(np)) == before


def test_public_names_are_there():
    for name in set(recbole_fedras.__all__) - {"__version__"}:
        found = getattr(recbole_fedras, name)
        assert (found.__name__, found.__module__[:14]) == (name, "recbole_fedras")
    assert set(recbole_fedras.__all__) <= set(dir(recbole_fedras))
    with pytest.raises(AttributeError, match="no attribute 'Compresor'"):
        _ = recbole_fedras.Compresor
