"""Classes of users, in a module beside their YAML file: every kind acts in a run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import yaml
from conftest import COMMON, ROOT, TINY, rounds_of

from recbole_fedras.__main__ import main
from recbole_fedras.config import Config
from recbole_fedras.config.listing import listing
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.attacks.base import draw_attackers
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.setup import make_simulation, prepare_data

PLUG_INS = '''
import torch

from recbole.evaluator.base_metric import AbstractMetric, TopkMetric
from recbole_fedras import Aggregator, Attack, RowUpdate, Transform
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.federation.attacks.base import with_values
from recbole_fedras.federation.server.broadcast import Broadcast
from recbole_fedras.federation.transforms import SharedUpdate


class OfEven(Aggregator):
    """Takes the sum of clients with an even number, and halves of their networks."""

    def __init__(self, scale=1.0):
        if scale <= 0:
            raise ValueError(f"scale={scale} must be positive")
        self.scale = scale

    def begin(self, table):
        self.rows, self.theta = torch.zeros_like(table), torch.zeros(0)

    def add(self, client, update, theta_change):
        if client % 2:
            return
        self.rows[update.ids] += self.scale * update.rows
        self.theta = theta_change / 2

    def result(self):
        ids = self.rows.any(dim=1).nonzero().flatten()
        return RowUpdate(ids, self.rows[ids]), self.theta


class Push(Transform):
    """Adds to what clients send, and makes half of what the server applies."""

    def __init__(self, push=0.0, *, keep=0.5):
        self.push, self.keep = push, keep

    def on_client(self, update, ctx):
        rows = RowUpdate(update.items.ids, update.items.rows + self.push)
        return SharedUpdate(rows, update.theta + ctx.sender)

    def on_aggregate(self, update, ctx):
        rows = RowUpdate(update.items.ids, update.items.rows * self.keep)
        return SharedUpdate(rows, update.theta * 0)


class Sometimes(Broadcast):
    """Publishes every so many rounds, and nothing between."""

    def __init__(self, agreement, compressor, parameters, every=2):
        if every < 1:
            raise ValueError(f"every={every} must be at least 1")
        super().__init__(agreement, compressor, parameters)
        self.every = every

    def publish(self, update):
        if self._parameters.round % self.every:
            update = RowUpdate(update.ids[:0], update.rows[:0])
        super().publish(update)


class Misses(TopkMetric):
    """Users whose item is not among the first k; fewer are better."""

    smaller = True

    def __init__(self, config, factor=1.0):
        super().__init__(config)
        self.factor = factor

    def calculate_metric(self, dataobject):
        hits, _ = self.used_info(dataobject)
        value = self.factor * (hits.cumsum(axis=1) == 0)
        return self.topk_result("misses", value)


class Shout(Attack):
    """Sends so many times what it trained, to rows only."""

    def __init__(self, loudness=2.0):
        if loudness == 0:
            raise ValueError(f"loudness={loudness} must not be 0")
        self.loudness = loudness

    def on_updates(self, updates, known):
        rows = updates.rows * self.loudness
        return with_values(updates, rows, updates.theta)


class Bare(AbstractMetric):
    """Says nothing of what it needs."""


class Hit(TopkMetric):
    """Has the name of one of RecBole's."""


class Mine(SVD):
    """SVD, if it is given its key."""

    def __init__(self, strength=1.0):
        assert strength == 2.0
'''


@pytest.fixture
def beside(workspace: Path, tmp_path_factory: pytest.TempPathFactory):
    """Write a YAML file outside of the working folder, the module beside it."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "plug_ins.py").write_text(PLUG_INS)

    def write(**keys) -> str:
        (folder / "mine.yaml").write_text(yaml.safe_dump(keys))
        return str(folder / "mine.yaml")

    return write


def simulation_of(file: str, *argv: str) -> Simulation:
    """Set up rounds without compression, as the file says."""
    config = Config(config_file_list=[file], argv=[*TINY, "--compressor=none", *argv])
    with config.in_use():
        train_data, _, _ = prepare_data(config)
        return make_simulation(config, train_data, Simulation)


def updates_of(simulation: Simulation) -> dict:
    """Run a round; return what each client's update and network were, as decoded."""
    taken, aggregator = {}, simulation.server.aggregator
    add = aggregator.add

    def spy(client, update, theta_change):
        taken[client] = update, theta_change
        add(client, update, theta_change)

    aggregator.add = spy
    simulation.run_round()
    return taken


def test_an_aggregator_combines_rows_and_networks_by_client(beside):
    own = beside(aggregation_class="plug_ins.OfEven", scale=0.25)
    simulation = simulation_of(own, "--model=NCF")
    parameters = simulation.server.parameters
    before, theta = parameters.item_table.clone(), parameters.theta.clone()
    updates = updates_of(simulation)
    even = sorted(client for client in updates if client % 2 == 0)
    assert 0 < len(even) < len(updates)
    expected = torch.zeros_like(before)
    for client in even:
        expected[updates[client][0].ids] += 0.25 * updates[client][0].rows
    assert torch.equal(parameters.item_table, before + expected)
    last = updates[even[-1]][1]
    assert last.any()
    assert torch.equal(parameters.theta, theta + last / 2)
    result = run_recbole_fedras(config_file_list=[own], argv=TINY)
    assert 0 < result["test_result"]["hit@10"] <= 1


def test_a_transform_changes_updates_and_aggregates(beside):
    rounds = {}
    for push in (0.0, 100.0):
        own = beside(transform_class="plug_ins.Push", push=push, max_update_norm=1e6)
        simulation = simulation_of(own, "--model=NCF")
        parameters = simulation.server.parameters
        before, theta = parameters.item_table.clone(), parameters.theta.clone()
        rounds[push] = updates_of(simulation)
        total, counts = torch.zeros_like(before), torch.zeros(len(before), 1)
        for update, _ in rounds[push].values():
            total[update.ids] += update.rows
            counts[update.ids] += 1
        expected = before + 0.5 * total / counts.clamp(min=1)
        assert torch.allclose(parameters.item_table, expected, rtol=1e-5)
        assert torch.equal(parameters.theta, theta)  # the aggregate's is no more
    assert rounds[0.0].keys() == rounds[100.0].keys()
    for client, (update, theta_change) in rounds[0.0].items():
        pushed = rounds[100.0][client][0]
        assert torch.equal(pushed.rows, update.rows + 100)
        assert torch.allclose(theta_change, torch.tensor(float(client)), atol=0.5)
    result = run_recbole_fedras(config_file_list=[own], argv=TINY)
    assert result["rounds"] == 3


def test_a_replica_policy_says_what_is_sent(beside):
    own = beside(replica_class="plug_ins.Sometimes", every=3)
    simulation = simulation_of(own)
    policy, parameters = simulation.server.policy, simulation.server.parameters
    start = parameters.item_table.clone()
    for n_rounds in (1, 2, 3):
        simulation.run_round()
        assert not torch.equal(parameters.item_table, start)
        assert torch.equal(policy.mirrors[0], start) == (n_rounds < 3)
    result = run_recbole_fedras(config_file_list=[own], argv=TINY)
    assert result["replica"] == "Sometimes"
    assert all(float(row["drift"]) > 0 for row in rounds_of(result)[:2])


def test_a_metric_is_measured_and_may_be_validated_by(beside):
    from recbole.evaluator import register

    tables = (register.metrics_dict, register.metric_types, register.metric_information)
    before = [*map(dict, tables), list(register.smaller_metrics)]
    own = beside(
        metrics=["Hit", "Misses"], metric_class="plug_ins.Misses", factor=10.0,
        valid_metric="Misses@5", topk=[5, 10],
    )  # fmt: skip
    result = run_recbole_fedras(config_file_list=[own], argv=TINY)
    assert not result["valid_score_bigger"]
    assert result["best_valid_score"] == result["best_valid_result"]["misses@5"]
    for k in (5, 10):
        hit, misses = (
            result["test_result"][f"{name}@{k}"] for name in ("hit", "misses")
        )
        assert misses == pytest.approx(10 * (1 - hit), abs=1e-3)
    scores = [float(row["valid_misses@5"]) for row in rounds_of(result)]
    assert result["best_valid_score"] == min(scores)
    assert [*map(dict, tables), list(register.smaller_metrics)] == before
    config = (Path(result["run_folder"]) / "config.yaml").read_text()
    assert yaml.safe_load(config)["metric_class"] == "plug_ins.Misses"


def test_clip_holds_every_update_to_its_norm(workspace):
    Path("clip.yaml").write_text("transforms: [clip]\nclip_norm: 0.01\n")
    for file, clipped in (("clip.yaml", True), ("none.yaml", False)):
        Path("none.yaml").write_text("transforms: []\n")
        simulation = simulation_of(file, "--model=NCF")
        norms = [
            float(torch.cat([update.rows.flatten(), theta_change]).norm())
            for update, theta_change in updates_of(simulation).values()
        ]
        assert (max(norms) <= 0.01 * (1 + 1e-6)) == clipped
        assert min(norms) > 0
    result = run_recbole_fedras(config_file_list=["clip.yaml"], argv=TINY)
    assert result["rounds"] == 3


def test_an_attack_acts_for_the_share_that_is_hostile(beside):
    sent = {}
    for loudness in (1.0, 8.0):
        own = beside(attack_class="plug_ins.Shout", loudness=loudness, attack_share=0.4)
        simulation = simulation_of(own, "--model=NCF")
        sent[loudness] = updates_of(simulation)
    agreement = simulation.agreement
    hostile = draw_attackers(agreement.federation.seed, agreement.n_clients, 0.4)
    loud = [client for client in sent[8.0] if hostile[client]]
    assert 0 < len(loud) < len(sent[8.0])
    for client, (update, theta_change) in sent[8.0].items():
        times = 8 if client in loud else 1
        assert torch.equal(update.rows, times * sent[1.0][client][0].rows)
        assert torch.equal(theta_change, sent[1.0][client][1])
    result = run_recbole_fedras(config_file_list=[own], argv=TINY)
    assert result["rounds"] == 3


def test_several_are_applied_in_order_and_listed(beside):
    own = beside(
        transforms=["clip"], transform_class=["plug_ins.Push"], push=3.0,
        aggregation_class="plug_ins.OfEven", replica_class="plug_ins.Sometimes",
        metric_class=["plug_ins.Misses"], metrics=["Misses"], valid_metric="Misses@10",
    )  # fmt: skip
    methods = Config(config_file_list=[own], argv=TINY).make_methods()
    names = [type(transform).__name__ for transform in methods.transforms]
    assert names == ["Clip", "Push"]
    assert (methods.transforms[1].push, methods.transforms[1].keep) == (3.0, 0.5)
    rows = {(row.kind, row.name): row for row in listing([own])}
    assert "replica=grid" in rows["preset", "best"].keys
    assert "'NCF': {'uplink_share': 0.5" in rows["preset", "best"].keys
    assert rows["preset", "best"].what.startswith("A sixty-fourth of all bytes")
    assert rows["transform", "Push"].keys == "push=0.0, keep=0.5"
    assert rows["aggregation", "OfEven"].keys == "scale=1.0"
    assert rows["replica", "Sometimes"].keys == "every=2"
    assert rows["metric", "Misses"].keys == "factor=1.0"
    assert rows["compressor", "RCR"].keys == "cut=epochs"
    assert {"clip", "broadcast", "fedavg"} <= {row.name for row in rows.values()}


@pytest.mark.long
def test_several_runs_have_them_too_in_other_processes(beside, workspace):
    own = beside(
        transform_class=["plug_ins.Push"], metric_class=["plug_ins.Misses"],
        metrics=["Hit", "Misses"], valid_metric="Hit@10", factor=10.0,
        compressor="Mine", compressor_class="plug_ins.Mine", strength=2.0,
    )  # fmt: skip
    command = ["compare", *COMMON, f"--config_files={own}", "--seeds=1", "--jobs=2"]
    compared = ["--compressors=SVD Mine RSC", "--compression_rates=0.5"]
    assert main([*command, *compared]) == 0
    with (workspace / "comparison" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["SVD 50 %", "Mine 50 %", "RSC 50 %"]
    for row in rows:
        misses = 10 * (1 - float(row["hit@10"]))
        assert float(row["misses@10"]) == pytest.approx(misses, abs=1e-3)
        assert row["hit@10 sd"] == ""  # of one seed
    assert rows[0]["hit@10"] == rows[1]["hit@10"]
    assert rows[0]["uplink MB"] == rows[1]["uplink MB"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"aggregation_class": "plug_ins.OfEven", "scale": 0},
            r"aggregation='OfEven' \(plug_ins\): scale=0 must be positive",
        ),
        (
            {"replica_class": "plug_ins.Sometimes", "every": 0},
            r"replica='Sometimes' \(plug_ins\): every=0 must be at least 1",
        ),
        ({"transforms": "clip", "clip_norm": 0}, "clip_norm=0 must be a positive"),
        ({"transforms": ["clop"]}, "transforms='clop' is unknown; did you mean 'clip'"),
        ({"transforms": {"clip": 1}}, "transforms=.* must be a list of names"),
        ({"push": 1}, "unknown config key 'push'"),
        ({"attack_class": "plug_ins.Shout", "loudness": 0}, "loudness=0 must not be 0"),
        ({"attack": "sign_flop"}, "attack='sign_flop' is unknown; did you mean"),
        ({"attack": "promote"}, "attack_target must be set: attack='promote' has no"),
        ({"attack": "alie", "n_shards": 2}, "must be 1 with attack=alie, whose"),
        ({"attack_share": 1.5}, "attack_share=1.5 is not allowed"),
        ({"attack_share": 0.2}, "it must be 0.05 without an attack, which attack na"),
        ({"secure_neighbours": 8}, "must be 16 without secure_aggregation=True"),
        (
            {
                "attack": "promote",
                "attack_target": "x",
                "item_embedding": "hash",
                "hash_rows": 9,
            },
            "item_embedding='hash' is not allowed; it must be full with",
        ),
        (
            {"attack": "promote", "attack_target": ["no such"]},
            "attack_target: the dataset has no item 'no such'",
        ),
        (
            {"transform_class": ["plug_ins.Push", "plug_ins.Push"]},
            "transform='Push' and transform='Push' both have the key 'keep'",
        ),
        ({"aggregation": "fedavgs"}, "aggregation='fedavgs' is unknown; did you mean"),
        ({"replica_class": "plug_ins.OfEven"}, "is not a subclass of DownlinkPolicy"),
        (
            {"uplink_share": 0.2, "uplink_compressor": "RandomRows"},
            "uplink_share=0.2 is not allowed; it must be 0.5 with RandomRows",
        ),
        ({"uplink_share": 1}, "uplink_share=1 is not allowed; it must be a number > 0"),
        (
            {"metric_class": "plug_ins.Misses"},
            "metrics=.* is not allowed; it must be with Misses, which metric_class",
        ),
        ({"metric_class": "plug_ins.Bare"}, "Bare must have the attribute metric_type"),
        ({"metric_class": "plug_ins.Hit"}, "Hit is the name of a metric of RecBole's"),
    ],
)
def test_values_that_a_class_refuses_are_told_by_key(beside, keys, said):
    with pytest.raises(ConfigError, match=said):
        simulation_of(beside(**keys))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("aggregation_class", "self.rows[update.ids] += self.scale * update.rows"),
        ("transform_class", "rows = RowUpdate(update.items.ids, update.items.rows * "),
        ("replica_class", "super().publish(update)"),
        ("attack_class", "rows = updates.rows * self.loudness"),
        ("metric_class", "hits, _ = self.used_info(dataobject)"),
    ],
)
def test_a_bug_is_named_by_class_and_line(beside, kind, bad, capsys):
    named = {
        "aggregation_class": "OfEven", "transform_class": "Push",
        "replica_class": "Sometimes", "metric_class": "Misses",
        "attack_class": "Shout",
    }  # fmt: skip
    keys = {kind: f"plug_ins.{named[kind]}"}
    if kind == "attack_class":
        keys |= {"attack_share": 0.9}
    if kind == "metric_class":
        keys |= {"metrics": ["Misses"], "valid_metric": "Misses@10"}
    own = beside(**keys)
    module = Path(own).with_name(f"buggy_{kind}.py")
    line = next(
        number for number, text in enumerate(PLUG_INS.splitlines(), 1) if bad in text
    )
    lines = PLUG_INS.splitlines()
    indent = len(lines[line - 1]) - len(lines[line - 1].lstrip())
    lines[line - 1] = " " * indent + "raise ValueError('a bug')"
    module.write_text("\n".join(lines))
    Path(own).write_text(Path(own).read_text().replace("plug_ins.", f"{module.stem}."))
    assert main([f"--config_files={own}", *TINY, "--compressor=none"]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert "ValueError: a bug" in error
    path = f"{module.stem}.{named[kind]}"
    expected = f"the error arose in {kind}={path!r}, {module}:{line}"
    assert error[-1] == f"recbole-fedras: {expected}"


@pytest.mark.parametrize(
    "kind", ["aggregation", "transform", "attack", "replica", "metric", "world"]
)
def test_the_documented_class_of_each_kind_acts(workspace, kind):
    pages = (ROOT / "docs" / "plug_ins.md").read_text(encoding="utf-8")
    blocks = pages.split("```python\n# ")[1:]
    code, keys = next(
        block.split("```yaml\n") for block in blocks if f"{kind}_class:" in block
    )
    name, _, code = code.partition("\n")
    Path(name).write_text(code.partition("```")[0])
    Path("mine.yaml").write_text(keys.partition("```")[0])
    plain = run_recbole_fedras(argv=TINY)
    result = run_recbole_fedras(config_file_list=["mine.yaml"], argv=TINY)
    if kind == "metric":
        hit, misses = (result["test_result"][f"{of}@10"] for of in ("hit", "misses"))
        assert misses == pytest.approx(1 - hit, abs=1e-4)
    elif kind == "world":
        by_link = result["groups"]["downlink_mb_per_s"]["upto"]
        assert by_link[-1] == pytest.approx(0.75 * (2 * 0.9875) ** 1.5)
    else:
        losses = [rounds_of(of)[-1]["loss"] for of in (plain, result)]
        assert losses[0] != losses[1]
