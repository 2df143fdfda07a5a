"""Sweeps: each run once, whatever happens on the way."""

from __future__ import annotations

import multiprocessing
import os
import select
import time
from pathlib import Path

import numpy as np
import pytest
from sweeps import cell, runs_in

from recbole_fedras.errors import DataError, KilledError
from recbole_fedras.experiments import sweep as sweep_module
from recbole_fedras.experiments.sweep import Sweep


def test_a_finished_cell_never_runs_twice(workspace, in_process):
    cells = [cell(seed=seed) for seed in (1, 2)]
    first = Sweep(Path("out"), 1).run(cells)
    assert len(in_process) == 2
    again = Sweep(Path("out"), 1).run([*cells, cell(seed=3)])
    assert [own["seed"] for own in in_process] == [1, 2, 3]
    assert again[:2] == first
    for own, outcome in zip(cells, first, strict=True):
        assert outcome["keys"]["seed"] == own["seed"] == outcome["result"]["seed"]
        assert len(outcome["ranks"]) == 40
        assert [point["round"] for point in outcome["curve"]] == [0, 1, 2]
        cost = outcome["result"]["communication"]
        assert outcome["curve"][-1]["uplink_bytes"] == cost["uplink_bytes"]
        hits = np.mean([0 < rank <= 10 for rank in outcome["ranks"]])
        assert outcome["result"]["test_result"]["hit@10"] == pytest.approx(
            hits, abs=1e-4
        )
    files = [path.name for path in Path("out").rglob("*") if path.is_file()]
    assert files == ["runs.jsonl.xz"]
    assert not Path("saved").exists()


def test_a_sweep_that_was_killed_goes_on(workspace, in_process, monkeypatch):
    run, calls = sweep_module._run_cell, []

    def killed_at_second(*how_and_cell):
        calls.append(how_and_cell[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*how_and_cell)

    cells = [cell(seed=seed) for seed in (1, 2, 3)]
    monkeypatch.setattr(sweep_module, "_run_cell", killed_at_second)
    with pytest.raises(KeyboardInterrupt):
        Sweep(Path("out"), 1).run(cells)
    assert len(list(Path("out/runs").glob("*.json"))) == 1
    assert len(Sweep(Path("out"), 1).run(cells)) == 3
    assert [own["seed"] for own in calls] == [1, 2, 2, 3]


@pytest.mark.long
def test_runs_under_way_are_kept_when_another_fails(workspace):
    good = [cell(seed=seed, epochs=30) for seed in (1, 2)]
    cells = [good[0], cell(dataset="nowhere"), good[1]]
    with pytest.raises(DataError, match="nowhere"):
        Sweep(Path("out"), 3).run(cells)
    assert len(list(Path("out/runs").glob("*.json"))) == 2


def end_the_process(keys):
    os._exit(1)


@pytest.mark.slow
def test_a_process_that_was_killed_is_an_error_with_a_remedy(workspace):
    with pytest.raises(KilledError, match="killed, maybe for want of memory: try fe"):
        Sweep(Path("out"), 1).run([cell()], measure=end_the_process)


def wait_for_ever(keys):
    with open(keys["data_path"], "wb", buffering=0) as pipe:
        pipe.write(b"at work")
        time.sleep(600)


def sweep_for_ever(pipe):
    Sweep(Path("out"), 1).run([{"data_path": pipe}], measure=wait_for_ever)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_works_on_for_a_sweep_that_was_killed(workspace):
    pipe = str(workspace / "pipe")
    os.mkfifo(pipe)
    process = multiprocessing.get_context("spawn").Process(
        target=sweep_for_ever, args=(pipe,)
    )
    process.start()
    with open(pipe, "rb", buffering=0) as reader:
        assert reader.read(7) == b"at work"
        process.kill()
        ready, _, _ = select.select([reader], [], [], 60)
        assert ready, "the worker is still there"
        assert reader.read() == b""  # its end is closed
    process.join()


def test_runs_of_other_folders_are_taken_and_copied(workspace, in_process):
    Sweep(Path("all/first"), 1).run([cell(seed=1)])
    Sweep(Path("all/second"), 1, beside=Path("all")).run([cell(seed=1), cell(seed=2)])
    assert [own["seed"] for own in in_process] == [1, 2]
    assert len(runs_in("all/first")) == 1
    assert len(runs_in("all/second")) == 2


def test_two_sweeps_of_a_folder_lose_nothing(workspace, in_process):
    one, two = Sweep(Path("out"), 1), Sweep(Path("out"), 1)
    one.run([cell(seed=1)])
    two.run([cell(seed=2)])
    assert {run["keys"]["seed"] for run in runs_in("out")} == {1, 2}


def test_a_cell_finds_the_dataset_that_ships_with_recbole(tmp_path, monkeypatch):
    """Though it runs in a folder of its own, and there is none called dataset here."""
    monkeypatch.chdir(tmp_path)
    cell = {"compressor": "none"}
    found = sweep_module._run_cell(lambda keys: keys, None, False, "a", cell)
    assert (Path(found["data_path"]) / "ml-100k" / "ml-100k.inter").is_file()
