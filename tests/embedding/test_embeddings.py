"""Item embeddings: what items are made of, trained, sent and scored alike."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMMON, ROOT, long, rounds_of, slow
from population import BASE, DIM, N_ITEMS, TRAINING, draw, mf, ncf, samples_of
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from recbole_fedras.config import Config, registry
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.embedding.base import local_rows
from recbole_fedras.embedding.full import Full
from recbole_fedras.embedding.hashing import Hash
from recbole_fedras.embedding.lora import LoRA
from recbole_fedras.embedding.rq import RQ
from recbole_fedras.federation.client.training import (
    LocalModel,
    Participants,
    train_cohort,
)
from recbole_fedras.numeric.theta import unflatten
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.setup import prepare_data, simulated
from recbole_fedras.run.trainer import FederatedTrainer

NAMES = list(registry.names("item_embedding"))
WARM = {"item_base": "warmup", "warmup_rounds": 1, "rq_codes": 8, "hash_rows": 16}
KINDS = [
    (Full, {}, None),
    (Full, {}, BASE),
    (LoRA, {"item_rank": 3}, None),
    (LoRA, {"item_rank": 3}, BASE),
    (Hash, {"hash_rows": 11}, None),
    (Hash, {"hash_rows": 11, "hash_functions": 3}, BASE),
    (Hash, {"hash_rows": 11, "hash_functions": 3, "hash_weights": True}, None),
    (Hash, {"hash_rows": 11, "hash_weights": True}, BASE),
    (RQ, {"rq_codes": 5, "rq_levels": 3}, None),
    (RQ, {"rq_codes": 5, "rq_levels": 3}, BASE),
]


def dense_items(embedding, table, theta, weighted=False):
    """Every item's vector, by the definitions and nothing of the code."""
    if isinstance(embedding, LoRA):
        made = table @ theta["item_factor"].T * (16 / embedding.width)
    elif isinstance(embedding, RQ):
        made = torch.stack([table[rows].sum(0) for rows in embedding.members.tolist()])
    elif isinstance(embedding, Hash) and weighted:
        h = embedding.n_parts - 1
        weights = 1 / h + table[11:, : DIM // h * h].reshape(-1, h)[:N_ITEMS]
        rows = embedding.members[:, :h]
        made = (weights[:, :, None] * table[rows]).sum(1)
    elif isinstance(embedding, Hash):
        made = torch.stack([table[rows].mean(0) for rows in embedding.members.tolist()])
    else:
        made = table
    return made if embedding.base is None else embedding.base + made


@pytest.mark.parametrize("make", [mf, ncf])
@pytest.mark.parametrize(("kind", "keys", "base"), KINDS)
def test_training_equals_autograd_through_the_definition(kind, keys, base, make, data):
    embedding, model = kind(N_ITEMS, DIM, base, 1, **keys), make()
    source = np.random.default_rng(2).standard_normal((N_ITEMS, DIM))
    embedding.fit(source.astype(np.float32), features=False)
    rng = torch.Generator().manual_seed(1)
    table = torch.randn(embedding.n_rows, embedding.width, generator=rng) * 0.5
    extra = {
        name: torch.randn(value.shape, generator=rng) * 0.5
        for name, value in embedding.theta().items()
    }
    theta = extra | model.theta()
    clients = [0, 3, 7]
    trained = train_cohort(
        LocalModel(model.score, theta, embedding=embedding),
        Participants(
            torch.tensor(clients),
            model.user_rows()[clients],
            None,
            table[None],
            torch.zeros(3, dtype=torch.int64),
        ),
        [draw(data, clients)],
        TRAINING,
    )
    for index, client in enumerate(clients):
        sample = samples_of(data, [client])[0]
        leaves = [model.user_rows()[client], table, *theta.values()]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        for rows, labels in zip(sample.rows, sample.labels, strict=True):
            for start in range(0, len(rows), TRAINING.batch_size):
                own = slice(start, start + TRAINING.batch_size)
                named = dict(zip(theta, leaves[2:], strict=True))
                items = dense_items(
                    embedding, leaves[1], named, keys.get("hash_weights")
                )
                logits = model.score(
                    leaves[0][None, None],
                    items[torch.from_numpy(sample.ids[rows[own]])][None],
                    {name: value[None] for name, value in named.items()},
                )[0]
                label = torch.from_numpy(labels[own])
                gradients = torch.autograd.grad(
                    bce(logits, label, reduction="sum"), leaves
                )
                rates = [TRAINING.user_learning_rate, TRAINING.learning_rate]
                rates += [TRAINING.theta_learning_rate / len(label)] * len(theta)
                with torch.no_grad():
                    for leaf, slope, rate in zip(leaves, gradients, rates, strict=True):
                        leaf -= rate * slope
        torch.testing.assert_close(
            trained.user_rows[index], leaves[0].detach(), rtol=1e-3, atol=1e-5
        )
        update = trained.updates[index]
        change = torch.zeros_like(table)
        change[update.ids] = update.rows
        torch.testing.assert_close(
            change, (leaves[1] - table).detach(), rtol=1e-3, atol=1e-5
        )
        wanted = embedding.members[sample.ids].ravel()
        assert set(update.ids.tolist()) == set(wanted.tolist())
        if theta:
            changes = [
                (leaf.detach() - value).flatten()
                for leaf, value in zip(leaves[2:], theta.values(), strict=True)
            ]
            torch.testing.assert_close(
                trained.updates.theta[index], torch.cat(changes), rtol=1e-3, atol=1e-5
            )


def test_values_are_those_of_the_papers_formulas():
    """N d, r (N + d), m d and L K d."""
    made = [
        (Full(N_ITEMS, DIM, None, 1), N_ITEMS * DIM),
        (LoRA(N_ITEMS, DIM, BASE, 1, item_rank=3), 3 * (N_ITEMS + DIM)),
        (Hash(N_ITEMS, DIM, BASE, 1, hash_rows=11), 11 * DIM),
        (Hash(N_ITEMS, DIM, None, 1, 11, 3, hash_weights=True), (11 + 20) * DIM),
        (RQ(N_ITEMS, DIM, BASE, 1, rq_codes=5, rq_levels=3), 3 * 5 * DIM),
    ]
    for embedding, expected in made:
        values = embedding.n_rows * embedding.width + embedding.n_theta
        assert values == expected


def test_local_rows_are_what_the_items_need(data):
    embedding = Hash(N_ITEMS, DIM, None, 1, hash_rows=7, hash_functions=2)
    samples = draw(data, [1, 4, 5])
    found = local_rows(samples, embedding)
    for client in range(3):
        own = slice(*samples.row_offsets[client : client + 2])
        rows = slice(*found.offsets[client : client + 2])
        wanted = embedding.members[samples.ids[own]]
        assert found.ids[rows].tolist() == sorted(set(wanted.ravel().tolist()))
        assert (found.ids[found.members[own]] == wanted.numpy()).all()
        assert (found.members[own] >= found.offsets[client]).all()


@pytest.mark.parametrize(
    ("model", "replica"),
    [
        ("NCF", "personal"),
        slow("MF", "broadcast"),
        slow("MF", "personal"),
        slow("NCF", "broadcast"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_definition(run, name, model, replica):
    keys = {"item_embedding": name, "use_base": True, "replica": replica}
    keys |= {"compressor": "none", "epochs": 4} | WARM
    result = run(model, **keys)
    config = Config(model, "tiny", config_dict=keys, argv=COMMON)
    train, _, _ = prepare_data(config)
    network = config.make_model(train._dataset)
    trainer = FederatedTrainer(config, network, simulated(config, train))
    trainer.load_clients(read_checkpoint(Path(result["run_folder"]) / "last.pth"))
    replicas = trainer.simulation.shard.replicas
    users, items = torch.arange(1, 41), torch.arange(1, 61)
    interaction = {network.USER_ID: users}
    scores = network.full_sort_predict(interaction).view(40, -1)[:, 1:].detach()
    for user in (3, 17, 40):
        held = int(replicas.table_of([user - 1])[0])
        table, networks = replicas.tables[held], replicas.networks
        flat = replicas.theta if networks is None else networks[held]
        theta = unflatten(flat, network.theta())
        vectors = dense_items(network.embedding, table, theta)
        expected = network.score(
            network.user_embedding.weight[user][None, None],
            vectors[None],
            {key: value[None] for key, value in theta.items()},
        )[0]
        torch.testing.assert_close(scores[user - 1], expected.detach())
        pairs = {network.USER_ID: torch.full((60,), user), network.ITEM_ID: items}
        torch.testing.assert_close(network.predict(pairs).detach(), expected.detach())
        pairs = {network.USER_ID: torch.tensor([user]), network.ITEM_ID: items[None]}
        torch.testing.assert_close(
            network.predict(pairs)[0].detach(), expected.detach()
        )


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_formula(run, name):
    """4 N d, 4 r (N + d), 4 m d and 4 L K d, where every row changes."""
    keys = WARM | {"item_base": "warmup" if name == "rq" else "random"}
    keys |= {"item_embedding": name, "item_rank": 4, "epochs": 3, "eval_step": 1}
    result = run(compressor="none", client_fraction=1.0, **keys)
    n_rows, width, n_theta = {
        "full": (60, 8, 0), "lora": (60, 4, 4 * 8), "hash": (16, 8, 0),
        "rq": (4 * 8, 8, 0),
    }[name]  # fmt: skip
    last = rounds_of(result)[-1]
    assert int(last["downlink_items_bytes"]) == 40 * 4 * n_rows * width
    assert int(last["downlink_theta_bytes"]) == 40 * 4 * n_theta
    assert int(last["downlink_ids_bytes"]) == 0
    assert int(last["uplink_theta_bytes"]) == 40 * 4 * n_theta
    assert int(last["uplink_items_bytes"]) <= 40 * 4 * n_rows * width
    # What it is compared with is the whole table of items, of any embedding.
    assert result["communication"]["dense_bytes"] == 3 * 40 * 2 * 4 * 60 * 8
    assert result["item_embedding"] == name


COMPRESSORS = [name for name in registry.names("compressor") if name != "BinaryCodes"]
REFUSED = {
    ("lora", "Base"): "one that cut=embedding_size can cut",
    ("rq", "RCR"): "less than the round of the last evaluation, 1",
}


MODELS = [name for name in registry.names("model") if name != "LightFR"]
SIZES = {"embedding_size": 8, "mf_embedding_size": 4, "mlp_embedding_size": 4}
OBJECTIVES = ["sgd", "sam"]


def composes_or_says_why_not(run, name, objective, model, compressor):
    keys = {"item_embedding": name, "hash_rows": 24, "rq_codes": 6, "warmup_rounds": 1}
    keys |= {"compressor": compressor, "compression_rate": 0.5, "epochs": 2}
    keys |= SIZES | {"local_objective": objective}
    said = REFUSED.get((name, compressor))
    if (model, compressor) == ("FedNeuMF", "Base"):
        said = "cannot cut the parts of model=FedNeuMF"
    if said is not None:
        with pytest.raises(ValueError, match=said):
            run(model, **keys)
        return
    result = run(model, saved=False, **keys)
    cost, tried = result["communication"], (name, objective, model, compressor)
    assert 0 < result["test_result"]["hit@10"] <= 1, tried
    n_bytes = cost["uplink_bytes"] + cost["downlink_bytes"]
    assert 0 < n_bytes < cost["dense_bytes"], tried


def combinations_with(compressor):
    """Combine each embedding with two models, by turns with either objective."""
    row = COMPRESSORS.index(compressor)
    for column, name in enumerate(NAMES):
        for turn in range(2):
            model = MODELS[(row + column + 2 * turn) % len(MODELS)]
            yield name, OBJECTIVES[(row + column + turn) % 2], model, compressor


def test_any_two_of_them_are_combined():
    kinds = NAMES, OBJECTIVES, MODELS, COMPRESSORS
    tried = [keys for name in COMPRESSORS for keys in combinations_with(name)]
    for one, other in combinations(range(4), 2):
        pairs = {(keys[one], keys[other]) for keys in tried}
        assert pairs == set(product(kinds[one], kinds[other]))


FAST = ["FedRAS"]


@pytest.mark.parametrize(
    "compressor", [name if name in FAST else long(name) for name in COMPRESSORS]
)
def test_any_two_compose_or_say_why_not(run, compressor):
    """Any two of a compressor, a model, an embedding and an objective meet here."""
    for keys in combinations_with(compressor):
        composes_or_says_why_not(run, *keys)


@pytest.mark.parametrize("name", ["full", "lora", "hash"])
def test_items_start_as_their_base_and_that_is_of_the_seed(workspace, name):
    vectors = []
    for seed, base in ((1, True), (1, True), (2, True), (1, False)):
        keys = {"item_embedding": name, "use_base": base, "seed": seed}
        config = Config("MF", "tiny", config_dict=keys, argv=COMMON)
        train, _, _ = prepare_data(config)
        torch.manual_seed(len(vectors))  # nothing depends on the global generator
        network = config.make_model(train._dataset)
        items = torch.arange(60)[None]
        held = network._held(torch.tensor([1]))
        found = network._vectors(items, held, torch.zeros_like(items))[0].detach()
        if base:
            assert torch.equal(found, network.embedding.base)
        vectors.append(found)
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
    assert not torch.equal(vectors[0], vectors[3])
    assert vectors[3].any() == (name != "lora")  # whose B is zero


POLICIES = [
    {"replica": "stale"},
    {"replica": "personal", "bandwidth": [0.3, 0.6]},
    {"downlink_feedback": True, "compressor": "KLT"},
    {"uplink_feedback": True, "server_optimizer": "yogi"},
]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *zip(["lora", "hash"] * 2, POLICIES, strict=True),
        *map(slow, ["hash", "lora"] * 2, POLICIES),
    ],
)
def test_policies_and_servers_work_with_it(run, name, keys):
    result = run(
        "NCF", item_embedding=name, hash_rows=24, epochs=3, compression_rate=0.5, **keys
    )
    assert 0 < result["test_result"]["hit@10"] <= 1


def test_what_is_too_narrow_for_a_rank_is_refused(workspace):
    keys = {"item_embedding": "lora", "compressor": "SVD", "compression_rate": 0.9}
    with pytest.raises(ValueError, match="leaves a rank of 0 for 60 rows x 4 col"):
        run_recbole_fedras(config_dict=keys, argv=COMMON)


def test_an_embedding_of_ones_own(run, workspace):
    (workspace / "halved.py").write_text(
        '''
from recbole_fedras.embedding.full import Full

class Halved(Full):
    """Half of each row."""

    def __init__(self, n_items, dim, base, seed, share=0.25):
        super().__init__(n_items, dim, base, seed)
        self.share = share

    def compose(self, parts, items, theta):
        return self.share * super().compose(parts, items, theta)
'''
    )
    own = {"item_embedding": "Halved", "item_embedding_class": "halved.Halved"}
    result = run(share=0.5, epochs=2, **own)
    config = Path(result["run_folder"]) / "config.yaml"
    assert "share: 0.5" in config.read_text()
    again = Config(config_file_list=[str(config)])
    assert type(again.make_item_embedding(60, 8)).__name__ == "Halved"


def test_the_example_of_the_docs_works(run, workspace):
    text = (ROOT / "docs" / "item_embeddings.md").read_text(encoding="utf-8")
    code = text[text.index("# paired.py") :]
    (workspace / "paired.py").write_text(code[: code.index("```")])
    own = {"item_embedding": "Paired", "item_embedding_class": "paired.Paired"}
    result = run(epochs=2, share=0.25, compressor="none", client_fraction=1.0, **own)
    assert int(rounds_of(result)[-1]["downlink_items_bytes"]) <= 40 * 4 * 30 * 8


@pytest.mark.parametrize(
    ("name", "objective"), [("full", "sam"), *((name, "sgd") for name in NAMES[1:])]
)
def test_binary_codes_are_of_full_items_and_plain_descent(workspace, name, objective):
    keys = {"model": "LightFR", "item_embedding": name, "local_objective": objective}
    said = "item_embedding" if name != "full" else "local_objective='sam'"
    with pytest.raises(ValueError, match=f"{said}.* is not .* with model=LightFR"):
        Config(config_dict=keys | {"dataset": "tiny", "warmup_rounds": 1}, argv=COMMON)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"item_embedding": "lora2"},
            "item_embedding='lora2' is unknown; did",
        ),
        ({"item_embedding": "lora", "item_rank": 0}, "item_rank=0 is not allowed"),
        ({"item_embedding": "lora", "item_rank": 99}, "from 1 to embedding_size=8"),
        ({"item_embedding": "hash", "hash_rows": 0}, "hash_rows=0 is not allowed"),
        ({"item_embedding": "hash", "hash_functions": 1.5}, "hash_functions=1.5"),
        ({"item_embedding": "hash", "hash_weights": 1}, "hash_weights=1 is not"),
        (
            {"item_embedding": "hash", "hash_functions": 9, "hash_weights": True},
            "hash_functions=9 is not allowed; it must be at most embedding_size=8",
        ),
        ({"item_embedding": "lora", "item_alpha": 0}, "item_alpha=0 is not allowed"),
        ({"item_embedding": "lora", "compressor": "Base"}, "cut=embedding_size can"),
        ({"use_base": "maybe"}, "use_base='maybe' is not"),
        ({"model": "LightFR", "item_embedding": "hash"}, "full with model=LightFR"),
        ({"model": "LightFR", "use_base": True}, "False with model=LightFR"),
        (
            {
                "model": "LightFR",
                "item_embedding_class": "recbole_fedras.embedding.hashing.Hash",
            },
            "full with model=LightFR",
        ),
    ],
)
def test_bad_embeddings_are_refused(workspace, keys, said):
    with pytest.raises(ValueError, match=said):
        Config(config_dict={"model": "MF", "dataset": "tiny"} | keys, argv=COMMON)
