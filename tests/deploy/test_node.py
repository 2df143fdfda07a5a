"""Deployments over links in this process: whatever fails, the simulation's bits."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from conftest import DIM, long, rounds_of, slow
from links import DirectLinks

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.deploy.node import make_handle
from recbole_fedras.deploy.split import split
from recbole_fedras.errors import ConfigError, FederationError
from recbole_fedras.federation import deployment, protocol, simulation
from recbole_fedras.run.deployed import PROTOCOL, deploy
from recbole_fedras.wire.frame import Step, pack, unpack
from recbole_fedras.wire.transport import MemoryTransport

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

#: A warm-up, of which users and network are kept.
WARM = {
    "item_embedding": "rq",
    "rq_levels": 2,
    "rq_codes": 8,
    "warmup_rounds": 3,
    "user_optimizer": "adam",
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
    for key in ("invitations", "begun"):  # failed ones count
        one["server"][key] = other["server"][key]
    for half in ("server", "ledger"):
        torch.testing.assert_close(one[half], other[half], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("NCF", {"replica": "personal", "uplink_feedback": True}),
        ("MF", {"eval_step": 0}),  # the last round is the best, and never validated
        slow("NCF", WARM),
        slow("NCF", WARM | {"replica": "personal", "uplink_feedback": True}),
        slow("MF", {"item_embedding": "hash", "hash_rows": 20}),
        slow("MF", {"compressor": "KLT", "bandwidth": [0.5, 0.75]}),
        slow("NCF", {"replica": "stale", "user_optimizer": "adam"}),
        slow("MF", {"preset": "best", "compression_rate": 0.1}),
        slow("NCF", {"preset": "best", "compression_rate": 0.1}),
    ],
)
def test_a_deployment_ends_with_the_simulations_bits(run, parts, model, keys):
    simulated = run(model, **KEYS | keys)
    assert_same(simulated, deployed(parts, links_to(parts), model, **keys))


@pytest.mark.slow
def test_only_the_server_has_features_of_items(run, workspace):
    lines = [f"i{item}\t{1950 + item % 7}.0\tg{item % 5}" for item in range(60)]
    file = workspace / "dataset" / "tiny" / "tiny.item"
    file.write_text("item_id:token\tyear:float\tgenre:token\n" + "\n".join(lines))
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    columns["item"] = ["item_id", "year", "genre"]
    keys = KEYS | {"load_col": columns, "item_base": "features", "rq_epochs": 3}
    keys |= {"item_embedding": "rq", "rq_levels": 2, "rq_codes": 8, "epochs": 4}
    simulated = run("NCF", **keys)
    parts = workspace / "parts"
    split(Config("NCF", "tiny", config_dict=keys), 2, parts)
    assert not list(parts.rglob("*.item"))
    assert_same(simulated, deployed(parts, links_to(parts), "NCF", **keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"replica": "personal", "uplink_feedback": True, "user_optimizer": "adam"},
        slow(WARM),
    ],
)
def test_a_node_that_starts_again_goes_on_where_it_was(run, parts, keys):
    """After each answer, one of the nodes is replaced by one that knows its folder."""
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


@pytest.mark.parametrize("seed", [0, long(1), long(2), long(3)])
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


@pytest.mark.parametrize(
    ("step", "keys"),
    [
        (8, {"replica": "personal", "uplink_feedback": True}),
        slow(4, {"replica": "personal", "uplink_feedback": True}),
        slow(5, WARM),
    ],
)
def test_a_server_that_starts_again_goes_on_where_it_was(run, parts, step, keys):
    """Killed after a round's checkpoint and before its evaluation."""
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
    folder = parts / "node-0" / "runs"
    before = set(folder.iterdir()) if folder.is_dir() else set()
    deployed(parts, links_to(parts), "MF", epochs=2)
    (run,) = set(folder.iterdir()) - before
    return run.name


@pytest.mark.parametrize(
    "key",
    [
        "data_path", "resume", "save_dataset", "checkpoint_dir", "config_files",
        "world_trace",
    ],
)  # fmt: skip
def test_a_server_does_not_say_which_files_a_node_reads(parts, key):
    about = {"protocol": PROTOCOL, "version": "1", "run": "a", "keys": {key: "x"}}
    answer = _answer(parts, [Step("hello", value=about)])
    assert f"{key}='x' is not for a server to say" in answer.value[1]
    assert not (parts / "node-0" / "runs").exists()


def test_a_server_does_not_say_which_columns_and_rows_a_node_reads(parts):
    for keys, named in (
        ({"ITEM_ID_FIELD": "rating"}, "ITEM_ID_FIELD='rating'"),
        ({"val_interval": {"rating": "[9,9]"}}, "val_interval={'rating': '[9,9]'}"),
        ({"benchmark_filename": ["a", "b"]}, "benchmark_filename=['a', 'b']"),
    ):
        about = {"protocol": PROTOCOL, "version": "1", "run": "a", "keys": keys}
        answer = _answer(parts, [Step("hello", value=about)])
        assert f"{named} is not what this node reads its data by" in answer.value[1]


def test_a_nodes_own_files_say_how_it_reads_and_which_classes_there_are(
    workspace, parts
):
    """Of its files only what is about data counts; classes lie beside them."""
    (workspace / "own").mkdir()
    (workspace / "own" / "halved_beside.py").write_text(
        "from recbole_fedras.federation.transforms import Transform\n"
        "class Halved(Transform):\n    pass\n"
    )
    file = workspace / "own" / "node.yaml"
    file.write_text("user_inter_num_interval: '[9,inf)'\nepochs: 77\n")
    handle = make_handle(parts / "0", "tiny", parts / "node-0", [str(file)])
    keys = {"transform_class": "halved_beside.Halved"}
    about = {"protocol": PROTOCOL, "version": "1", "run": "a", "keys": keys}
    elsewhere = _answer(parts, [Step("hello", value=about)])
    assert "'halved_beside.Halved' cannot be imported" in elsewhere.value[1]
    (found,) = unpack(handle(pack([Step("hello", value=about)])))
    assert found.what == "hello", found
    lines = (parts / "0" / "tiny" / "tiny.inter").read_text().splitlines()[1:]
    counts = Counter(line.split("\t")[0] for line in lines)
    n_users = sum(count >= 9 for count in counts.values())
    assert found.value["n_users"] == n_users < len(counts)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, None),
        ({"clip_norm": 9.0}, "clip_norm=9.0 is not what this"),
        ({"transforms": ["clip"]}, "transforms=.'clip'. is not what this node dem"),
        ({"attack": "sign_flip"}, "attack='sign_flip' is not what this node demands"),
        ({"dp_noise_source": "seed"}, "dp_noise_source='seed' is not allowed"),
        ({"client_seed": 3}, "client_seed=3 is not for a server to say"),
        ({"demands": {"epochs": 9}}, "demands=.* is not for a server to say"),
    ],
)
def test_a_node_takes_part_only_in_runs_as_it_demands(workspace, parts, keys, said):
    file = workspace / "node.yaml"
    file.write_text(
        "client_seed: 12345678901234567890\n"
        "demands: {transforms: local_dp, clip_norm: 2}\n"
    )
    handle = make_handle(parts / "0", "tiny", parts / "node-0", [str(file)])
    keys = {"transforms": ["local_dp"], "dp_noise_source": "os"} | {
        "report_loss": False, "clip_norm": 2.0, "dp_noise_multiplier": 0.0, **keys
    }  # fmt: skip
    about = {"protocol": PROTOCOL, "version": "1", "run": "a", "keys": keys}
    (found,) = unpack(handle(pack([Step("hello", value=about)])))
    if said is None:
        assert found.what == "hello"
        kept = (parts / "node-0" / "runs" / "a" / "keys").read_bytes()
        assert msgpack.unpackb(kept)["keys"]["client_seed"] == 12345678901234567890
    else:
        assert re.search(said, found.value[1])


def test_a_server_has_no_seed_of_clients(parts):
    with pytest.raises(ConfigError, match="client_seed is not for a deployment's ser"):
        deployed(parts, links_to(parts), "MF", client_seed=5)


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


def test_what_a_node_keeps_of_runs_long_over_is_deleted(parts):
    runs = parts / "node-0" / "runs"
    for second, run in enumerate(["a", "used", "b", "c"]):
        (runs / run).mkdir(parents=True)
        (runs / run / "keys").touch()
        for path in (runs / run, runs / run / "keys"):
            os.utime(path, (second, second))
    (runs / "used" / "keys").touch()  # asked for since, the folder's own time is old
    os.utime(runs / "used", (1, 1))
    run = _begun(parts)
    assert {folder.name for folder in runs.iterdir()} == {run, "used", "c"}


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


def test_a_cohort_that_is_all_absent_is_a_round_of_nobody(run, workspace, monkeypatch):
    """A shard is gone from some rounds, of which each invites one block or the other.

    A simulation without those clients in those rounds has the same bits.
    """
    monkeypatch.setattr(protocol, "GROUP", 1)  # so that blocks are of 20 users
    keys = KEYS | {"client_fraction": 0.05, "epochs": 12, "replica": "personal"}
    gone = set(range(2, 10))  # rounds
    first = 20  # client of shard 1
    parts = workspace / "parts"
    split(Config("MF", "tiny", config_dict=keys), 2, parts)

    class Absent(MemoryTransport):
        def exchange(self, messages, deadline=None):
            return super().exchange(
                message
                for message in messages
                if message.header.round not in gone or message.header.client < first
            )

    with monkeypatch.context() as patched:
        patched.setattr(simulation, "MemoryTransport", Absent)
        simulated = run("MF", **keys)
    counted = [int(row["clients"]) for row in rounds_of(simulated)]
    assert 0 in counted
    assert 2 in counted

    links = links_to(parts)
    honest = links.handles["1"]

    def handle(request: bytes) -> bytes:
        first = unpack(request)[0]
        away = first.what == "run" and first.value[2] in gone
        return honest(b"\xc1" if away else request)

    links.handles["1"] = handle
    result = deployed(parts, links, "MF", **keys | {"min_shards": 1})
    assert [row["clients"] for row in rounds_of(result)] == list(map(str, counted))
    for key in ("loss", "absent", "refused", "drift", "uplink_bytes", "downlink_bytes"):
        found = [[row[key] for row in rounds_of(one)] for one in (simulated, result)]
        assert found[0] == found[1], key
