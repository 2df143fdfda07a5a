"""Deployments over links in this process: whatever fails, the simulation's bits."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIM, rounds_of, slow
from links import DirectLinks

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.deploy.node import make_handle
from recbole_fedras.deploy.split import split
from recbole_fedras.errors import ConfigError, FederationError
from recbole_fedras.federation import deployment, protocol
from recbole_fedras.run.deployed import PROTOCOL, deploy
from recbole_fedras.wire.frame import Step, pack, unpack

KEYS = {
    "client_fraction": 0.25,
    "embedding_size": DIM,
    "compression_rate": 0.75,
    "eval_step": 2,
    "epochs": 6,
    "show_progress": False,
    "eval_args": {
        "split": {"LS": "valid_and_test"},
        "order": "TO",
        "group_by": "user",
        "mode": "uni20",
    },
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(protocol, "GROUP", 2)  # several blocks of 40 users
    monkeypatch.setattr(deployment, "_PAUSE", 0.01)


@pytest.fixture
def parts(workspace):
    """Split the dataset into two folders; return what holds them."""
    config = Config("MF", "tiny", config_dict=KEYS)
    split(config, 2, workspace / "parts")
    return workspace / "parts"


def links_to(parts: Path, **more) -> DirectLinks:
    handles = {
        name: make_handle(parts / name, "tiny", parts / f"node-{name}")
        for name in ("0", "1")
    }
    return DirectLinks(handles, **more)


def deployed(parts: Path, links: DirectLinks, model: str, **keys):
    given = {"catalogue": str(parts / "catalogue.txt"), "min_shards": 2}
    return deploy(Config(model, "tiny", config_dict=KEYS | given | keys), links)


def assert_same(simulated, deployed) -> None:
    carried = deployed["carried"]  # beside what is counted
    assert carried["answers"] > deployed["communication"]["uplink_bytes"] / 2
    assert carried["requests"] > 0
    for key in ("test_result", "best_valid_result", "communication", "rounds"):
        assert simulated[key] == deployed[key], key
    rows = [
        [
            {key: row[key] for key in row if not key.startswith("seconds")}
            for row in rounds_of(result)
        ]
        for result in (simulated, deployed)
    ]
    assert rows[0] == rows[1]
    one, other = (
        read_checkpoint(Path(result["run_folder"]) / "last.pth")["simulation"]
        for result in (simulated, deployed)
    )
    for half in ("server", "ledger"):
        torch.testing.assert_close(one[half], other[half], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("NCF", {"replica": "personal", "uplink_feedback": True}),
        ("MF", {"item_embedding": "hash", "hash_rows": 20}),
        ("MF", {"eval_step": 0}),  # the last round is the best, and never validated
        slow("MF", {"compressor": "KLT", "bandwidth": [0.5, 0.75]}),
        slow("NCF", {"replica": "stale", "user_optimizer": "adam"}),
        slow("MF", {"preset": "best", "compression_rate": 0.1}),
    ],
)
def test_a_deployment_ends_with_the_simulations_bits(run, parts, model, keys):
    simulated = run(model, **KEYS | keys)
    assert_same(simulated, deployed(parts, links_to(parts), model, **keys))


def test_a_node_that_starts_again_goes_on_where_it_was(run, parts):
    """After each answer, one of the nodes is replaced by one that knows its folder."""
    keys = {"replica": "personal", "uplink_feedback": True, "user_optimizer": "adam"}
    simulated = run("NCF", **KEYS, **keys)
    links, count = links_to(parts), 0

    def restarted(name: str) -> bool:
        nonlocal count
        count += 1
        if count % 3 == 0:
            folder = parts / f"node-{name}"
            links.handles[name] = make_handle(parts / name, "tiny", folder)
        return False

    links._loses = restarted
    assert_same(simulated, deployed(parts, links, "NCF", **keys))


@pytest.mark.parametrize("seed", [0, slow(1), slow(2), slow(3)])
def test_answers_that_are_lost_are_asked_for_again(run, parts, seed):
    """With ``min_shards`` of all, no round counts without one of them."""
    simulated = run("NCF", **KEYS, replica="personal")
    rng = np.random.default_rng(seed)
    links = links_to(parts)
    started = False

    def loses(name: str) -> bool:
        nonlocal started
        started = started or (parts / "node-1" / "runs").is_dir()
        settled = list((parts / "node-1" / "runs").glob("*/requests-*"))
        return bool(settled) and rng.random() < 0.3

    links._loses = loses
    assert_same(simulated, deployed(parts, links, "NCF", replica="personal"))


@pytest.mark.parametrize("step", [8, slow(4)])
def test_a_server_that_starts_again_goes_on_where_it_was(run, parts, step):
    """Killed after a round's checkpoint and before its evaluation."""
    keys = {"replica": "personal", "uplink_feedback": True}
    simulated = run("MF", **KEYS, **keys)

    class KilledError(Exception):
        pass

    links = links_to(parts)
    asked = 0

    def kill(name: str) -> bool:
        nonlocal asked
        asked += 1
        if asked == kill.at:
            raise KilledError
        return False

    for kill.at in range(6, 24, step):
        asked = 0
        links._loses = kill
        with pytest.raises(KilledError):
            deployed(parts, links, "MF", checkpoint_dir=f"killed-{kill.at}", **keys)
        found = list(Path(f"killed-{kill.at}").glob("*/last.pth"))
        if not found:
            continue
        asked = -(10**6)
        again = deployed(parts, links_to(parts), "MF", resume=str(found[0]), **keys)
        assert_same(simulated, again)


def test_a_server_that_was_given_up_for_dead_is_not_obeyed(parts):
    links = links_to(parts)
    deployed(parts, links, "MF", epochs=2)
    (folder,) = (parts / "node-1" / "runs").iterdir()

    def asked(term: int) -> Step:
        request = pack([Step("run", value=[folder.name, term, None])])
        return unpack(links.handles["1"](request))[0]

    newest = int((folder / "term").read_text())
    assert asked(newest + 1).what == "held"
    for handle in (
        links.handles["1"],
        make_handle(parts / "1", "tiny", folder.parents[1]),
    ):
        links.handles["1"] = handle
        refused = asked(newest)
        assert refused.what == "failed"
        assert "another server has taken this run over" in refused.value[1]


def test_who_cannot_take_part_says_why(parts):
    catalogue = parts / "catalogue.txt"
    catalogue.write_text(catalogue.read_text().replace("i5\n", ""))
    with pytest.raises(ConfigError, match="shard 0 does not take part: item 'i5' is "):
        deployed(parts, links_to(parts), "MF")
    result = deployed(parts, links_to(parts), "MF", unknown_items="drop", epochs=1)
    assert result["rounds"] == 1


def _answer(parts, request: list[Step]) -> Step:
    handle = make_handle(parts / "0", "tiny", parts / "node-0")
    steps = {step.what: step for step in unpack(handle(pack(request)))}
    return steps.get("failed", steps.get("evaluate"))


def _begun(parts) -> str:
    """Run two rounds; return the name of the run."""
    deployed(parts, links_to(parts), "MF", epochs=2)
    (run,) = (parts / "node-0" / "runs").iterdir()
    return run.name


@pytest.mark.parametrize(
    "key",
    [
        "data_path", "resume", "save_dataset", "benchmark_filename", "config_files",
        "world_trace",
    ],
)  # fmt: skip
def test_a_server_does_not_say_which_files_a_node_reads(parts, key):
    about = {"protocol": PROTOCOL, "version": "1", "run": "a", "keys": {key: "x"}}
    answer = _answer(parts, [Step("hello", value=about)])
    assert f"{key}='x' is not for a server to say" in answer.value[1]
    assert not (parts / "node-0" / "runs").exists()


@pytest.mark.parametrize("name", ["../../x", "", "a/b", "a.b", None, 3, ["a"]])
def test_a_run_is_no_path(parts, name):
    for what in ("hello", "begin"):
        about = {"protocol": PROTOCOL, "version": "1", "run": name, "keys": {}}
        answer = _answer(parts, [Step(what, value=about)])
        assert answer.what == "failed"
    assert (
        "is no name of a run"
        in _answer(parts, [Step("run", value=[name, 1, 0])]).value[1]
    )
    assert not (parts / "x").exists()


def test_what_a_run_began_with_stays(parts):
    run = _begun(parts)
    about = {"protocol": PROTOCOL, "version": "1", "run": run, "keys": {"epochs": 9}}
    answer = _answer(parts, [Step("hello", value=about)])
    assert "the run has begun, with other keys" in answer.value[1]
    agreed = {"run": run, "n_clients": 2**60, "catalogue": b"i1", "first": 0}
    answer = _answer(parts, [Step("begin", value=agreed)])
    assert "numbers of" in answer.value[1]
    evaluation = [Step("run", value=[run, 2**63, 2]), Step("evaluate", value="test")]
    assert _answer(parts, evaluation).value["n_users"] > 0


def test_a_request_of_a_round_that_is_over_changes_nothing(parts):
    run = _begun(parts)
    late = [Step("run", value=[run, 2**63, 0]), Step("settle")]
    assert "round 0 is over" in _answer(parts, late).value[1]


def test_a_run_does_not_go_on_with_other_data(parts):
    run = _begun(parts)
    file = parts / "0" / "tiny" / "tiny.inter"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    answer = _answer(parts, [Step("run", value=[run, 2**63, 2]), Step("settle")])
    assert answer.value[0] == "DataError"
    assert "is not what this run began with" in answer.value[1]


def test_a_run_cannot_need_more_shards_than_it_has(parts):
    done = deployed(parts, links_to(parts), "MF", epochs=1)
    last = str(Path(done["run_folder"]) / "last.pth")
    links = links_to(parts)
    links.handles["2"] = links.handles["1"]  # one that is not of the run
    with pytest.raises(ConfigError, match=r"min_shards=3 .* at most 2"):
        deployed(parts, links, "MF", resume=last, epochs=2, min_shards=3)


def test_a_deployment_has_links_of_its_own(parts):
    with pytest.raises(ConfigError, match="world='constant' is not allowed in a depl"):
        deployed(parts, links_to(parts), "MF", world="constant")


def test_a_server_that_goes_back_is_refused(parts):
    done = deployed(parts, links_to(parts), "MF", eval_step=1, epochs=6)
    folder = Path(done["run_folder"])
    assert read_checkpoint(folder / "best.pth")["epoch"] < 5
    best = str(folder / "best.pth")
    with pytest.raises(FederationError, match="is over: this node has come to round"):
        deployed(parts, links_to(parts), "MF", resume=best, epochs=7, eval_step=1)


def test_a_failed_request_costs_a_node_nothing(run, parts):
    """Steps nobody knows, and a disk that is full, between any two answers."""
    keys = {"replica": "personal", "uplink_feedback": True}
    simulated = run("MF", **KEYS, **keys)
    links = links_to(parts)
    for name, handle in list(links.handles.items()):

        def broken(request: bytes, handle=handle) -> bytes:
            answer = handle(request)
            first = unpack(request)[0]
            if first.what == "run":
                handle(pack([first, Step("nonsense")]))
                handle(b"\xc1")
            return answer

        links.handles[name] = broken
    assert_same(simulated, deployed(parts, links, "MF", **keys))


def test_an_end_that_is_asked_for_does_not_wait_for_shards(parts):
    """One signal is enough where there is nobody whose round could end."""
    links = links_to(parts)

    def vanish(name: str) -> bool:
        if list((parts / "node-1" / "runs").glob("*/requests-*")):
            links.handles.pop("1", None)
            signal.raise_signal(signal.SIGTERM)
        return False

    links._loses = vanish
    with pytest.raises(KeyboardInterrupt):
        deployed(parts, links, "MF")
