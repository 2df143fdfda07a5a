"""What a node keeps on disk, however its process ends."""

from __future__ import annotations

import os
import stat

import pytest

from recbole_fedras.config.checkpoint import replacing
from recbole_fedras.deploy import journal as module
from recbole_fedras.deploy.journal import Journal
from recbole_fedras.errors import PayloadError


def replayed(folder):
    """Return the state and the requests that a new process finds, and its journal."""
    found = []
    journal = Journal(folder)
    journal.replay(lambda state: found.append(state["n"]), found.append)
    return found, journal


def test_a_request_cut_off_is_gone_and_harms_none_after_it(tmp_path):
    Journal(tmp_path).append(b"one")
    log = tmp_path / "requests-0"
    whole = log.read_bytes()
    for size in range(len(whole) + 1):
        log.write_bytes(whole + (b"\xc4\x09" + b"x" * 9)[: size + 1])  # of eleven bytes
        found, journal = replayed(tmp_path)
        assert found == [b"one"]
        journal.append(b"two")
        assert replayed(tmp_path)[0] == [b"one", b"two"]
    log.write_bytes(whole + bytes(64))  # a file that grew before it was written
    assert replayed(tmp_path)[0] == [b"one"]


@pytest.mark.parametrize("room", [0, 1, 7])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, room):
    journal = Journal(tmp_path)
    journal.append(b"one")

    def full(data, file):
        file.write(data[:room])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_write", full)
        with pytest.raises(OSError, match="No space"):
            journal.append(b"two, which is long")
    journal.append(b"three")
    assert replayed(tmp_path)[0] == [b"one", b"three"]


@pytest.mark.parametrize("where", ["write_checkpoint", "unlink"])
def test_a_state_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch, where):
    journal = Journal(tmp_path)
    journal.append(b"one")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        target = module if where == "write_checkpoint" else module.Path
        patched.setattr(target, where, fail)
        with pytest.raises(OSError, match="No space"):
            journal.begin_anew({"n": 1})
    found, journal = replayed(tmp_path)
    assert found == ([b"one"] if where == "write_checkpoint" else [1, b"one"])
    journal.append(b"two")
    journal.begin_anew({"n": 2})
    journal.append(b"three")
    assert replayed(tmp_path)[0] == [2, b"two", b"three"]
    assert len(list(tmp_path.glob("requests-*"))) == 1


def test_a_file_that_is_written_once_never_changes(tmp_path):
    journal = Journal(tmp_path)
    for _ in range(2):
        journal.write_once("keys", b"a")
    with pytest.raises(PayloadError, match="has begun, with other keys"):
        journal.write_once("keys", b"b")
    assert journal.read("keys") == b"a"
    assert (tmp_path / "keys").stat().st_mode & 0o77 == 0


def test_another_best_round_is_not_taken_for_the_one_asked_for(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(PayloadError, match="nothing was kept of round 4"):
        journal.best(4)
    journal.keep_best(4, {"n": 4})
    assert journal.best(4) == {"n": 4}
    with pytest.raises(PayloadError, match="nothing was kept of round 6"):
        journal.best(6)


def test_names_of_files_are_on_the_disk_before_an_answer(tmp_path, monkeypatch):
    """Not only their content: a machine that loses power keeps what was answered."""
    synced, fsync = [], os.fsync

    def note(descriptor):
        fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append({path.name for path in tmp_path.iterdir()})

    monkeypatch.setattr(os, "fsync", note)
    journal = Journal(tmp_path)
    journal.write_once("keys", b"a")
    assert synced.pop() == {"keys"}
    journal.append(b"one")
    assert synced.pop() == {"keys", "requests-0"}
    journal.begin_anew({"n": 1})
    assert synced.pop() >= {"keys", "state.pth"}


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"new", "what no file takes"])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
