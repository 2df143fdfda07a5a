"""Runs are found again by what they computed, and by nothing less."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest
from sweeps import cell, runs_in

from recbole_fedras.config import registry
from recbole_fedras.experiments import provenance
from recbole_fedras.experiments.compare import Asked, compare
from recbole_fedras.experiments.identity import Resolver
from recbole_fedras.experiments.measures import information_loss
from recbole_fedras.experiments.methods import methods_of
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.sweep import Sweep
from recbole_fedras.run import provenance as run_provenance


def name(own, measure=train_and_test):
    return Resolver().identity(own, measure).name


@pytest.fixture
def defaults(workspace, monkeypatch):
    """Let a test change our defaults: a copy of ``properties``."""
    folder = workspace / "properties"
    shutil.copytree(registry.properties_folder(), folder)
    monkeypatch.setattr(registry, "properties_folder", lambda: folder)
    return folder


def test_cells_are_told_apart_by_all_that_they_say(workspace):
    assert name(cell(init_std=0.1, seed=1)) == name(cell(seed=1, init_std=0.1))
    assert name(cell(local_epochs=2)) == name(cell())  # the default
    assert name(cell(seed=1)) != name(cell(seed=2))
    assert name(cell(learning_rate=0.1)) != name(cell(learning_rate=0.2))
    assert name(cell(init_std=0.1)) != name(cell(base_std=0.1))
    assert name(cell(checkpoint_dir="here", n_jobs=2, use_gpu=False)) == name(cell())
    assert name(cell(checkpoint_step=5)) == name(cell())
    assert name(cell(), information_loss) != name(cell())
    resolver = Resolver()  # what it keeps does not mix them up
    for keys in ({"seed": 1}, {"seed": 2}, {"learning_rate": 0.1}, {}):
        own = cell(**keys)
        assert resolver.identity(own, train_and_test).name == name(own)


def test_a_cell_after_a_changed_default_runs_again(defaults, in_process):
    for _ in range(2):
        Sweep(Path("out"), 1).run([cell()])
    assert len(in_process) == 1
    overall = defaults / "overall.yaml"
    text = overall.read_text()
    assert "\nlocal_epochs: 2" in text
    overall.write_text(text.replace("\nlocal_epochs: 2", "\nlocal_epochs: 1"))
    for _ in range(2):
        Sweep(Path("out"), 1).run([cell()])
    assert len(in_process) == 2
    assert len(runs_in("out")) == 2
    Sweep(Path("out"), 1).run([cell(local_epochs=2)])  # the first, as it were now
    assert len(in_process) == 2


def test_a_key_that_came_since_is_not_held_against_a_run(workspace, in_process):
    """But against one that now gives it, or once gave what is no key any more."""
    Sweep(Path("out"), 1).run([cell(seed=1), cell(seed=2)])
    runs = runs_in("out")
    for run in runs:
        del run["config"]["local_loss"]
    runs[1]["keys"]["gone"] = runs[1]["config"]["gone"] = True
    with lzma.open("out/runs.jsonl.xz", "wt") as file:
        file.writelines(json.dumps(run) + "\n" for run in runs)
    first, second = (cell(seed=run["keys"]["seed"]) for run in runs)
    Sweep(Path("out"), 1).run([first])
    assert len(in_process) == 2
    Sweep(Path("out"), 1).run([first | {"local_loss": "bce"}])
    assert len(in_process) == 3
    Sweep(Path("out"), 1).run([second])
    assert len(in_process) == 4


def test_what_a_preset_has_come_to_set_is_another_run(workspace, in_process):
    keys = {"preset": "best", "compression_rate": 0.1, "uplink_compressor": "SVD"}
    Sweep(Path("out"), 1).run([cell(**keys)])
    (run,) = runs_in("out")
    assert run["config"].pop("uplink_share") != 0.5
    with lzma.open("out/runs.jsonl.xz", "wt") as file:
        file.write(json.dumps(run) + "\n")
    Sweep(Path("out"), 1).run([cell(**keys)])
    assert len(in_process) == 2


def test_other_data_are_another_run(workspace, in_process):
    Sweep(Path("out"), 1).run([cell()])
    path = workspace / "dataset/tiny/tiny.inter"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    Sweep(Path("out"), 1).run([cell()])
    assert len(in_process) == 2
    path.unlink()  # a run can be looked at where its data are not
    assert Sweep(Path("out"), 1).find(cell()) is not None


def test_changed_code_of_ones_own_is_another_run(workspace, in_process):
    source = "from recbole_fedras.compressor.none import NoCompression\n\n"
    module = workspace / "plug_in_of_mine.py"
    module.write_text(f"{source}class Mine(NoCompression): ...\n")
    keys = {"compressor": "Mine", "compressor_class": "plug_in_of_mine.Mine"}
    Sweep(Path("out"), 1).run([cell(**keys)])
    Sweep(Path("out"), 1).run([cell(**keys)])
    assert len(in_process) == 1
    module.write_text(f"{source}class Mine(NoCompression): 'Another.'\n")
    Sweep(Path("out"), 1).run([cell(**keys)])
    assert len(in_process) == 2


def test_a_run_says_what_made_it(workspace, in_process):
    (run,) = Sweep(Path("out"), 1).run([cell()])
    assert run["config"]["local_epochs"] == 2
    assert "data_path" not in run["config"]
    versions = run["made"]["versions"]
    assert versions.keys() >= {"recbole-fedras", "recbole", "torch", "numpy", "Python"}
    assert runs_in("out") == [run]


def test_code_is_known_by_what_can_change_a_run(tmp_path, monkeypatch):
    package = tmp_path / "recbole_fedras"
    (package / "experiments").mkdir(parents=True)
    (tmp_path / "properties" / "experiment").mkdir(parents=True)
    for module in (provenance, run_provenance):
        monkeypatch.setattr(module, "PACKAGE", package)
    monkeypatch.setattr(provenance, "commit", run_provenance.commit.__wrapped__)
    folder = tmp_path / "properties"
    monkeypatch.setattr(provenance, "properties_folder", lambda: folder)

    def made():
        return provenance.made_by.__wrapped__(train_and_test)

    (package / "version.py").write_text("a = 1\n")
    first = made()
    assert first["commit"] is None  # in no checkout
    for path in (
        package / "experiments" / "compare.py", folder / "experiment" / "fig1.yaml",
        package / "__main__.py",
    ):  # fmt: skip
        path.write_text("b: 1\n")
        assert made()["code"] == first["code"]
    (folder / "overall.yaml").write_text("epochs: 1\n")
    assert made()["code"] != first["code"]
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert made()["commit"] is None  # of another project, where ours is installed
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    commit = made()["commit"]
    assert len(commit) >= 7
    (package / "version.py").write_text("a = 2\n")
    assert made()["commit"] == f"{commit}-dirty"


@pytest.mark.long
def test_runs_of_other_code_are_marked_and_redone(
    workspace, in_process, monkeypatch, capsys
):
    shared = {key: value for key, value in cell().items() if key != "compressor"}

    def rows(redo=False):
        sweep = Sweep(Path("out"), 1, redo)
        methods = methods_of(["none", "SVD"], [0.75], shared)
        return compare(methods, [1], sweep, Asked())

    assert [row["other code"] for row in rows()] == ["", ""]
    now = provenance.made_by(train_and_test)
    other = now | {"code": "another"}
    for module in (provenance, "recbole_fedras.experiments.sweep"):
        path = f"{getattr(module, '__name__', module)}.made_by"
        monkeypatch.setattr(path, lambda measure: other)
    capsys.readouterr()
    label = now["commit"] or f"version {now['versions']['recbole-fedras']}"
    assert [row["other code"] for row in rows()] == [label, label]
    printed = capsys.readouterr().out
    assert "2 of 2 runs were made by other code" in printed
    assert Path("out/table.md").read_text() in printed
    assert "made by other code" in Path("out/report.html").read_text()
    assert len(in_process) == 2
    assert [row["other code"] for row in rows(redo=True)] == ["", ""]
    assert len(in_process) == 4
    rows(redo=True)
    assert len(in_process) == 4  # those of this code are not
    assert len(runs_in("out")) == 2


def test_older_runs_are_named_by_the_commit_that_added_them(workspace):
    run = {"made": {"added": "38e247c"}}
    assert provenance.other_code([run, run], train_and_test) == "before 38e247c"
