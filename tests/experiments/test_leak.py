"""What messages give away: attackers with known answers, and who is told what."""

from __future__ import annotations

import csv
import gc
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
from conftest import COMMON, DIM, N_ITEMS, ROOT
from population import TRAINING, federation, mf
from sklearn.metrics import roc_auc_score

from recbole_fedras.__main__ import main
from recbole_fedras.compressor import RowUpdate
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.config import Config
from recbole_fedras.data.clients import ClientData, draw_samples
from recbole_fedras.errors import ConfigError
from recbole_fedras.experiments.inference.base import Known, Seen
from recbole_fedras.experiments.inference.direction import Direction
from recbole_fedras.experiments.inference.replay import Replay
from recbole_fedras.experiments.inference.rows import Norm, Popularity, Presence
from recbole_fedras.experiments.inference.shadow import Shadow
from recbole_fedras.experiments.leak import leak
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.wiretap import TappedSimulation, judge
from recbole_fedras.federation.client.shard import Shard
from recbole_fedras.federation.client.training import LocalModel
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.numeric.rng import Stream, counter_key
from recbole_fedras.run.setup import make_simulation, prepare_data
from recbole_fedras.wire.message import Header, Kind

OWN = np.arange(0, 30, 3)  # ten of sixty items
COUNT = 10 * (1 + TRAINING.n_negatives) * TRAINING.local_epochs


def known():
    model, table = mf(), torch.zeros(N_ITEMS, DIM)
    agreement = Agreement.of(federation(), 9, table, 0, *2 * [NoCompression()])
    return Known(agreement, TRAINING, LocalModel(model.score, model.theta()))


def seen(ids, rows, client=5, count=COUNT):
    header = Header(Kind.UPDATE, 3, client, 4, 3, count)
    update = RowUpdate(torch.as_tensor(ids), torch.as_tensor(rows).float())
    base = torch.randn(N_ITEMS, DIM, generator=torch.Generator().manual_seed(2))
    return Seen(header, update, base, torch.zeros(0))


def moved_by(signs, seed=0):
    """Rows of all items, moved along one vector."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.1, 1, N_ITEMS) * signs
    return seen(np.arange(N_ITEMS), np.outer(steps, rng.standard_normal(DIM)))


def found(attacker, one):
    return judge(attacker.scores(one, known()), OWN)


@pytest.mark.parametrize("side", [1, -1])
def test_direction_reads_signs_whichever_way_the_client_points(side):
    signs = np.full(N_ITEMS, -side)
    signs[OWN] = side
    assert found(Direction(), moved_by(signs)) == (1, 1)


def test_random_signs_tell_nothing():
    rng = np.random.default_rng(1)
    aucs = [
        found(Direction(), moved_by(rng.choice([-1, 1], N_ITEMS), seed)).auc
        for seed in range(200)
    ]
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.03)


def test_presence_and_norm_have_their_known_answers():
    ids = np.arange(0, 40)  # the client's ten and thirty others, of fifty
    rows = np.ones((40, DIM))
    auc, precision = found(Presence(), seen(ids, rows))
    assert auc == pytest.approx((20 + 30 / 2) / 50)  # absent ones below, others equal
    assert precision == pytest.approx(10 / 40)
    rows[OWN] *= 2
    assert found(Norm(), seen(ids, rows)) == (1, 1)


def test_popularity_counts_others_only():
    attacker, rows = Popularity(), np.ones((10, DIM))
    assert not attacker.scores(seen(OWN, rows), known()).any()
    assert not attacker.scores(seen(OWN, rows), known()).any()
    assert found(attacker, seen(OWN + 1, rows, client=6)) == (1, 1)


def test_scores_that_are_equal_count_as_ordered_at_random():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, N_ITEMS).astype(float)
    auc, precision = judge(scores, OWN)
    truth = np.isin(np.arange(N_ITEMS), OWN)
    assert auc == pytest.approx(roc_auc_score(truth, scores))
    shuffled = [rng.permutation(N_ITEMS) for _ in range(2000)]
    best = [order[np.argsort(-scores[order], kind="stable")][:10] for order in shuffled]
    assert precision == pytest.approx(np.mean(np.isin(best, OWN)), abs=0.02)


def drawn(seed, n_items=400):
    """Draw for the client whose items are ``OWN``; return negatives, what is seen."""
    data = ClientData.from_pairs(0 * OWN + 5, OWN, 9, n_items)
    counts = TRAINING.n_negatives, TRAINING.local_epochs
    key = counter_key(seed, Stream.SAMPLES, 3)
    samples = draw_samples(data, np.array([5]), *counts, key)
    negatives = samples.ids[np.unique(samples.rows[samples.labels == 0])]
    one = seen(samples.ids, np.ones((len(samples.ids), DIM)))
    return negatives, one._replace(base=torch.zeros(n_items, DIM))


def test_who_knows_the_seed_draws_the_negatives_again():
    seed = known().agreement.federation.seed
    negatives, one = drawn(seed)
    scores = Replay().scores(one, known())
    assert (scores[negatives] == 1).all()
    assert (scores[OWN] == 2).sum() >= 8  # others were drawn, too, and refused
    assert judge(scores, OWN).auc > 0.99
    # What is drawn by another seed does not fit.
    _, other = drawn(seed + 1)
    assert set(Replay().scores(other, known())) == {0, 2}


def test_the_shadow_settles_as_many_items_as_there_are():
    signs = np.full(N_ITEMS, -1)
    signs[OWN] = 1
    scores = Shadow().scores(moved_by(signs), known())
    assert sorted(set(scores)) == [1, 2]
    assert (scores == 2).sum() == 10


def keys_of(**keys):
    common = Config(argv=COMMON).external_config_dict
    return common | {"n_jobs": 1, "compressor": "none"} | keys


def reachable(*roots):
    """Objects that one comes to from some, but for code."""
    queue, met = list(roots), {}
    while queue:
        one = queue.pop()
        if id(one) in met or isinstance(one, type | FunctionType | ModuleType):
            continue
        met[id(one)] = one
        queue += gc.get_referents(one)
    return list(met.values())


def test_attackers_are_handed_what_bytes_decode_to_and_nothing_private(workspace):
    """Neither a shard, interactions nor trained users can be reached."""
    noted = []
    keys = keys_of(compressor="SVD", compression_rate=0.75, client_seed=77)
    config = Config(config_dict=keys)
    train, _, _ = prepare_data(config)
    kind = partial(TappedSimulation, lambda known, seen: noted.append((known, seen)))
    simulation = make_simulation(config, train, kind)
    start = simulation.shard.user_rows.clone()
    simulation.run_round()
    assert len(noted) == 10  # a quarter of forty clients
    assert not torch.equal(simulation.shard.user_rows, start)
    trained = simulation.shard.user_rows[noted[0][1].header.client]
    for one in reachable(*noted):
        assert not isinstance(one, Simulation | Shard | ClientData)
        if isinstance(one, torch.Tensor) and one.shape[-1:] == trained.shape:
            assert not (one == trained).all(dim=-1).any()
    known, seen = noted[0]
    assert known.agreement.federation.client_seed is None
    assert torch.linalg.matrix_rank(seen.update.rows) == 2  # of 8: as compressed
    assert type(simulation.shard.methods.uplink) is SVD


def test_an_attacker_knows_the_network_that_clients_trained(workspace):
    """Which is not the server's, where it is coded."""
    keys = keys_of(model="NCF", preset="best", compression_rate=0.5)
    config = Config(config_dict=keys)
    noted = []

    def note(known, seen):
        held = simulation.shard.replicas.theta
        exact = simulation.server.parameters.theta
        noted.append((torch.equal(seen.theta, held), torch.equal(held, exact)))

    train, _, _ = prepare_data(config)
    simulation = make_simulation(config, train, partial(TappedSimulation, note))
    simulation.run_round()
    noted.clear()
    simulation.run_round()
    assert set(noted) == {(True, False)}


def test_leak_measures_a_run_and_changes_nothing_of_it(workspace):
    kept, plain = (measure(keys_of()) for measure in (leak, train_and_test))
    tested = plain["result"]["test_result"]
    assert tested.items() <= kept["result"]["test_result"].items()
    for same in ("communication", "best_valid_result"):
        assert kept["result"][same] == plain["result"][same]
    assert (kept["curve"], kept["ranks"]) == (plain["curve"], plain["ranks"])
    measured = kept["result"]["test_result"]
    assert measured["AUC direction"] > 0.99
    assert measured["AUC popularity"] < measured["AUC presence"] < 1
    assert measured["AUC"] == max(v for k, v in measured.items() if "AUC" in k)
    with pytest.raises(ConfigError, match="item_embedding"):
        leak(keys_of(item_embedding="hash"))
    masked = {"secure_aggregation": True, "report_loss": False, "compressor": "none"}
    with pytest.raises(ConfigError, match="secure_aggregation=True is not allowed"):
        leak(keys_of(**masked))


def documented():
    """Return the attacker of the page, and its key."""
    page = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    code, keys = page.split("```python\n# ")[1].split("```yaml\n")[:2]
    name, _, code = code.partition("\n")
    return name, code.partition("```")[0], keys.partition("```")[0]


@pytest.mark.slow
def test_the_command_writes_tables_and_a_plot(workspace, in_process, capsys):
    name, code, keys = documented()
    Path(name).write_text(code)
    Path("mine.yaml").write_text(keys)
    command = [
        "leak", *COMMON, "--config_files=mine.yaml", "--compressors=none SVD",
        "--compression_rates=0.75", "--protections=none pseudo_items",
        "--n_pseudo_items=20",
    ]  # fmt: skip
    assert main(command) == 0
    assert len(in_process) == 4
    with Path("leak/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = [(row["method"], row["protection"]) for row in rows]
    methods, protections = ("none", "SVD 75 %"), ("none", "pseudo_items")
    assert labels == [(one, other) for one in methods for other in protections]
    assert float(rows[1]["uplink MB"]) > float(rows[0]["uplink MB"])
    for of in ("auc", "precision"):
        attackers = Path(f"leak/{of}/table.md").read_text()
        assert f"| {keys.split('.')[-1].strip()} " in attackers
        assert "| replay " in attackers
    assert Path("leak/leak.png").stat().st_size > 1000
    assert Path("leak/table.md").read_text() in capsys.readouterr().out
    assert main(command) == 0  # which runs nothing again
    assert len(in_process) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--transforms=['clip']"], "transforms must not be set: that is what is"),
        (["--protections=pseudo"], "transforms='pseudo' is unknown; did you mean"),
        (["--negatives=0"], "an integer sample_num >= 1"),
        (["--attacker_class=5"], "attacker_class=5 is not allowed; it must be a list"),
        (["--attacker_class=no.Such"], "attacker_class='no.Such' cannot be imported"),
    ],
)
def test_the_command_refuses_bad_input_before_any_run(
    workspace, in_process, capsys, arguments, said
):
    assert main(["leak", *COMMON, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not in_process
