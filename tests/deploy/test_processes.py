"""Processes that are watched, started again, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from recbole_fedras.deploy import processes
from recbole_fedras.deploy.processes import (
    Family,
    Process,
    ended_by_signals,
    environment,
    free_port,
    only_here,
)
from recbole_fedras.errors import ConfigError, KilledError


class Clock:
    """A clock that only we move."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(processes, "time", clock)
    return clock


def process(tmp_path: Path, code: str, **keys: bool) -> Process:
    command = [sys.executable, "-c", code]
    return Process("it", command, tmp_path / "log", os.environ, **keys)


def wait_for(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_one_that_ends_is_started_again_ever_later(tmp_path, clock):
    starts = process(tmp_path, "print('started', flush=True)")
    pauses = []
    with Family() as family:
        family.add(starts)
        for _ in range(9):
            wait_for(lambda: starts.status == 0)
            starts.tend()  # it notes that it has ended
            begin = clock.now
            while starts.status == 0 and not pauses[9:]:
                clock.now += 0.5
                starts.tend()
                if clock.now - begin > 100:
                    raise AssertionError("never again")
                if (tmp_path / "log").read_text().count("started") > len(pauses) + 1:
                    break
            pauses.append(clock.now - begin)
    assert pauses[:3] == [5, 7.5, 11.5]
    assert max(pauses) == 60


def test_what_a_command_has_told_its_user_is_told_ours(tmp_path):
    code = (
        "import sys; print('before'); print('error: no such file', '\\n'); sys.exit(2)"
    )
    tells = process(tmp_path, code)
    with Family() as family:
        family.add(tells)
        wait_for(lambda: tells.status == 2)
        with pytest.raises(KilledError, match="it has ended: error: no such file"):
            tells.tend()


def test_one_that_has_run_for_long_is_started_again_soon(tmp_path, clock):
    starts = process(tmp_path, "")
    with Family() as family:
        family.add(starts)
        for after in (0, 0, 1000):
            wait_for(lambda: starts.status == 0)
            clock.now += after
            starts.tend()
            clock.now += 60
            starts.tend()
    assert starts._pause == 7.5


def test_one_that_reports_an_error_is_started_again(tmp_path, capsys):
    code = "import time; print('INFO : fine', flush=True); time.sleep(60)"
    works = process(tmp_path, code, restart_on_error=True)
    with Family() as family:
        family.add(works)
        wait_for(lambda: "fine" in (tmp_path / "log").read_text())
        works.tend()
        assert works.status is None
        with (tmp_path / "log").open("a") as log:
            log.write("\x1b[91mERROR \x1b[0m: SSL/TLS handshake error detected.\n")
        works.tend()
        assert works.status == -signal.SIGTERM
    printed = capsys.readouterr().out
    assert "it has reported an error" in printed
    assert "is started again in 5 s" in printed


def test_a_log_that_somebody_empties_is_read_on(tmp_path):
    works = process(tmp_path, "import time; time.sleep(60)", restart_on_error=True)
    (tmp_path / "log").write_text("x" * 1000)
    with Family() as family:
        family.add(works)
        (tmp_path / "log").write_text("ERROR")
        works.tend()
        assert works.status is not None


def test_all_end_also_what_they_have_started_and_what_does_not_want_to(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(processes, "_ENDING", 0.5)
    monkeypatch.setattr(processes, "_LEFT", 0.5)
    stubborn = (
        "import signal, subprocess, sys, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True); print('ready', flush=True); time.sleep(60)"
    )
    with contextlib.suppress(RuntimeError), Family() as family:
        first = psutil.Process(family.add(process(tmp_path, stubborn)).pid)
        wait_for(lambda: "ready" in (tmp_path / "log").read_text())
        children = [first, *first.children(recursive=True)]
        assert len(children) == 2
        raise RuntimeError("whatever happens")
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_sigterm_leaves_by_way_of_every_finally():
    left = []
    with contextlib.suppress(KeyboardInterrupt), ended_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            left.append("too late")
        finally:
            left.append("finally")
    assert left == ["finally"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_folder_is_used_by_one_and_read_by_its_owner(tmp_path):
    folder = tmp_path / "node"
    with only_here(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(ConfigError, match="in use by another"), only_here(folder):
            pass
    with only_here(folder):
        pass


def test_flowers_programs_call_nobody_and_find_each_other(tmp_path):
    env = environment(tmp_path)
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["FLWR_HOME"] == str(tmp_path)
    found = subprocess.run(
        ["python", "-c", "import sys; print(sys.prefix)"],  # noqa: S607
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == sys.prefix


def test_a_free_port_is_free():
    assert 0 < free_port() < 2**16
