"""What a command says of its progress."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr
from types import SimpleNamespace

import numba
import pytest

from recbole_fedras.numeric.compiling import COMPILING
from recbole_fedras.numeric.stopwatch import Stopwatch
from recbole_fedras.run import stages
from recbole_fedras.run.progress import ProgressBar
from recbole_fedras.run.stages import stage

REPORT = SimpleNamespace(loss=0.5, n_clients=10)
TOTALS = {"uplink_bytes": 1, "downlink_bytes": 2}


class Terminal(io.StringIO):
    """Standard error, on a terminal."""

    def isatty(self):
        return True


class Noting(numba.core.event.Listener):
    """Notes modules that are compiled."""

    def __init__(self):
        self.modules = set()

    def on_start(self, event):
        self.modules.add(COMPILING.module)

    def on_end(self, event):
        pass


@pytest.fixture(params=[io.StringIO, Terminal])
def err(request, monkeypatch):
    monkeypatch.setattr(stages, "TICK", 0.01)
    return request.param()


def wait_for(said, err):
    end = time.monotonic() + 10
    while said not in err.getvalue():
        assert time.monotonic() < end, err.getvalue()
        time.sleep(0.01)


def test_a_stage_is_told_when_it_begins_and_while_it_lasts(err):
    doing = ["", "", "compiling model.mf"]
    with (
        redirect_stderr(err),
        stage("reading tiny", doing=lambda: doing.pop(0) if doing[1:] else doing[0]),
    ):
        assert "reading tiny" in err.getvalue()
        wait_for("compiling model.mf", err)
    if err.isatty():  # a line that is gone
        assert err.getvalue().endswith("\r\x1b[K\r")
        assert "reading tiny, compiling model.mf 0 s" in err.getvalue()
    else:
        lines = ["recbole-fedras: reading tiny", "recbole-fedras: compiling model.mf"]
        assert err.getvalue().splitlines() == lines


def test_whatever_fails_in_a_stage_ends_it(err):
    with redirect_stderr(err), pytest.raises(KeyError), stage("reading tiny"):
        raise KeyError
    before = err.getvalue()
    time.sleep(0.05)
    assert err.getvalue() == before
    with redirect_stderr(err), stage("reading tiny", show=False):
        pass
    assert err.getvalue() == before


def test_what_numba_compiles_is_no_time_of_the_phase():
    @numba.njit
    def twice(x):
        return 2 * x

    seconds, noting = Stopwatch(), Noting()
    with seconds("training"):
        start = time.perf_counter()
        with numba.core.event.install_listener("numba:compile", noting):
            twice(1)
        elapsed = time.perf_counter() - start
        twice(1)
    taken = seconds.taken()
    assert 0.5 * elapsed < taken["compiling"] <= elapsed
    assert taken["training"] < 0.5 * elapsed
    assert noting.modules == {__name__}
    assert COMPILING.module == ""
    assert seconds.taken() == {"compiling": 0.0}


def test_the_time_left_does_not_count_compiling(err, monkeypatch):
    with redirect_stderr(err), ProgressBar(11, 0, show=True) as progress:
        bar = progress._bar
        begun = bar.start_t
        monkeypatch.setattr(COMPILING, "_seconds", COMPILING._seconds + 1000)
        bar._time = lambda: begun + 1020  # of which a round has taken 20
        progress.advance(REPORT, TOTALS, 1020)
        assert bar.format_dict["rate"] == pytest.approx(1 / 20)
        assert progress.figures["clients/s"] == "0"
        bar._time = lambda: begun + 1040
        progress.advance(REPORT, TOTALS, 20)
        assert bar.format_dict["rate"] == pytest.approx(1 / 20)
    assert "2/11 [17:20<03:00, 20.00s/round" in err.getvalue()


def test_a_round_that_compiles_says_so(err, monkeypatch):
    said = "compiling model.mf (once on this machine)"
    with redirect_stderr(err), ProgressBar(3, 0, show=True):
        monkeypatch.setattr(COMPILING, "_module", "model.mf")
        monkeypatch.setattr(COMPILING, "_depth", 1)
        wait_for(said, err)
        monkeypatch.setattr(COMPILING, "_depth", 0)
    if err.isatty():
        wait_for(f"Rounds, {said}:", err)
    else:
        assert err.getvalue().count(said) == 1
