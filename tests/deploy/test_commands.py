"""``recbole-fedras deploy``: what it refuses before anything is started."""

from __future__ import annotations

import importlib.util

import pytest

from recbole_fedras.__main__ import main

flower = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="needs the extra deploy"
)
SHARD = ["shard", "--name=a", "--data_path=x", "--dataset=x"]


def test_without_flower_it_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["deploy", "server"]) == 2
    assert "constraints-deploy.txt" in capsys.readouterr().err


@flower
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["server", "--insecure"], "--insecure with '0.0.0.0': without TLS"),
        (["server"], "--keys=FOLDER is missing"),
        (["server", "--keys=k", "--address=8000"], "'8000' is not host:port"),
        (["server", "--keys=k", "--address=192.0.2.7:8000"], "the loopback device"),
        (["server", "--keys=k", "--compresor=x"], "compresor"),
        (["server", "--keys=none"], "no ca.crt; make them by"),
        ([*SHARD, "--superlink=192.0.2.7:8000", "--insecure"], "--insecure with"),
        ([*SHARD, "--superlink=192.0.2.7:8000", "--keys=k"], "no ca.crt; the server"),
        ([*SHARD, "--superlink=host:99999", "--keys=k"], "is not host:port"),
        (["local", "--shards", "x/a", "y/a"], "two have one name"),
        (["keys", "k", "--nodes", "../a"], "a name has up to 64"),
    ],
)
def test_what_cannot_work_is_refused(workspace, capsys, arguments, said):
    assert main(["deploy", *arguments]) == 2
    assert said in capsys.readouterr().err


@flower
def test_keys_are_made_and_named(workspace, capsys):
    assert main(["deploy", "keys", "k", "--nodes", "a", "--hosts", "192.0.2.7"]) == 0
    assert capsys.readouterr().out.split()[0] == "k/a.key"
    assert (workspace / "k" / "server.crt").is_file()
