"""RecBole's own models, federated: they score as there, or say why they cannot."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import COMMON, TINY, slow
from recbole.model.general_recommender import BPR, ItemKNN, LightGCN, NeuMF

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.model.gmf import GMF
from recbole_fedras.model.wrapped import FedNeuMF, WrappedRecommender
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.setup import prepare_data

SIZES = {"embedding_size": 8, "mf_embedding_size": 3, "mlp_embedding_size": 5}


def build(model, **keys):
    config = Config(model, "tiny", config_dict=SIZES | keys, argv=COMMON)
    train, _, _ = prepare_data(config)
    network = config.make_model(train._dataset)
    return network, config, train._dataset


def spread(network):
    """Give every parameter values of some size."""
    rng = torch.Generator().manual_seed(0)
    for value in network.parameters():
        value.data.copy_(torch.randn(value.shape, generator=rng) * 0.5)


def test_neumf_scores_as_recboles(workspace):
    ours, config, dataset = build("FedNeuMF", mlp_hidden_size=[6, 4])
    spread(ours)
    theirs = NeuMF(config, dataset).eval()
    for side in ("user", "item"):
        rows = getattr(ours, f"{side}_embedding").weight.data
        getattr(theirs, f"{side}_mf_embedding").weight.data = rows[:, :3]
        getattr(theirs, f"{side}_mlp_embedding").weight.data = rows[:, 3:]
    missing, unexpected = theirs.load_state_dict(
        ours.network.state_dict(), strict=False
    )
    assert not unexpected
    assert all("embedding" in name for name in missing)
    users, items = torch.meshgrid(
        torch.arange(1, 41), torch.arange(1, 61), indexing="ij"
    )
    with torch.no_grad():
        expected = theirs.forward(users.flatten(), items.flatten()).view(40, 60)
        full = ours.full_sort_predict({ours.USER_ID: torch.arange(1, 41)})
        pairs = {ours.USER_ID: users.flatten(), ours.ITEM_ID: items.flatten()}
        flat = ours.predict(pairs).view(40, 60)
        some = {ours.USER_ID: torch.arange(1, 41), ours.ITEM_ID: items}
        candidates = ours.predict(some)
    for scores in (full.view(40, 61)[:, 1:], flat, candidates):
        torch.testing.assert_close(scores, expected)


def test_bpr_scores_as_recboles(workspace):
    ours, config, dataset = build("FedBPR")
    spread(ours)
    theirs = BPR(config, dataset)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    users = {ours.USER_ID: torch.arange(1, 41)}
    with torch.no_grad():
        expected = theirs.full_sort_predict(users).view(40, -1)[:, 1:]  # no [PAD]
        found = ours.full_sort_predict(users).view(40, -1)[:, 1:]
        torch.testing.assert_close(found, expected)
    assert ours.theta() == {}
    assert config["local_loss"] == "bpr"


@pytest.mark.parametrize(
    ("model", "replica"),
    [
        slow("FedBPR", "personal"),
        ("FedNeuMF", "broadcast"),
        slow("FedNeuMF", "personal"),
        slow("GMF", "broadcast"),
    ],
)
def test_threads_change_no_bit(run, monkeypatch, model, replica):
    from recbole_fedras.federation import protocol

    keys = SIZES | {"client_fraction": 1.0, "compressor": "SVD", "replica": replica}
    monkeypatch.setattr(protocol, "GROUP", 8)  # of 40 clients
    states = []
    for n_jobs in (1, 3):
        result = run(model, n_jobs=n_jobs, **keys)
        path = Path(result["run_folder"]) / "last.pth"
        states.append(read_checkpoint(path)["simulation"])
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_what_recbole_draws_is_of_the_seed_and_only_ours(workspace):
    first, _, _ = build("FedNeuMF", seed=1)
    assert copy.deepcopy(first) is not first  # as RecBole's get_flops does
    torch.manual_seed(6)
    again, _, _ = build("FedNeuMF", seed=1)
    other, _, _ = build("FedNeuMF", seed=2)
    for name, value in first.theta().items():
        assert torch.equal(value, again.theta()[name])
    assert not torch.equal(
        first.theta()["network.predict_layer.weight"],
        other.theta()["network.predict_layer.weight"],
    )


def test_gmf_is_mf_with_weights(workspace):
    network, _, _ = build("GMF")
    assert type(network) is GMF
    spread(network)
    users = network.user_embedding.weight.data[1:]
    items = network.item_embedding.weight.data[1:]
    expected = users @ torch.diag(network.weight.data) @ items.T
    scores = network.full_sort_predict({network.USER_ID: torch.arange(1, 41)})
    torch.testing.assert_close(scores.detach().view(40, 61)[:, 1:], expected)


class FedLightGCN(WrappedRecommender):
    """Takes a graph."""

    recommender = LightGCN


class WithBias(BPR):
    """BPR with a number of each user."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.bias = torch.nn.Parameter(torch.zeros(self.n_users))


class FedWithBias(WrappedRecommender):
    """Federates that."""

    recommender = WithBias


class WithNeighbours(BPR):
    """BPR that looks up another item."""

    def forward(self, user, item):
        return self.user_embedding(user), self.item_embedding((item + 1) % 61)


class FedWithNeighbours(WrappedRecommender):
    """Federates that."""

    recommender = WithNeighbours


class FedItemKNN(WrappedRecommender):
    """Has no embeddings."""

    recommender = ItemKNN


class WithNorm(BPR):
    """BPR with statistics of batches."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.norm = torch.nn.BatchNorm1d(8)


class FedWithNorm(WrappedRecommender):
    """Federates that."""

    recommender = WithNorm


@pytest.mark.parametrize(
    ("model", "keys", "said"),
    [
        (FedLightGCN, {}, r"LightGCN cannot be federated: its forward takes \[\]"),
        (FedWithBias, {}, "its parameter 'bias' has a dimension of 41, the number"),
        (FedWithNeighbours, {}, "looks up more than the embeddings of a pair"),
        (FedItemKNN, {}, "ItemKNN cannot be"),
        (FedNeuMF, {"mlp_hidden_size": "x"}, "NeuMF cannot be built: TypeError"),
        (FedNeuMF, {"mf_train": False}, "mf_train=False is not allowed"),
        (FedNeuMF, {"use_pretrain": True}, "use_pretrain=True is not allowed"),
        (FedWithNorm, {}, "it has a buffer 'norm.running_mean'"),
        (
            FedNeuMF,
            {"embedding_size": 10},
            "embedding_size=10 is not allowed; it must be 8, the user embeddings of",
        ),
    ],
)
def test_what_cannot_be_federated_says_why(workspace, model, keys, said):
    argv = [argument for argument in TINY if "embedding_size" not in argument]
    given = SIZES | {"mlp_hidden_size": [4]} if model is FedNeuMF else {}
    with pytest.raises(ValueError, match=said):
        run_recbole_fedras(model, "tiny", config_dict=given | keys, argv=argv)


def test_a_recommender_of_ones_own(run, workspace):
    """As docs/methods/recbole_models.md says."""
    (workspace / "my_bpr.py").write_text(
        '''
import torch
from recbole.model.general_recommender import BPR
from recbole_fedras.model.wrapped import WrappedRecommender


class Mine(BPR):
    """BPR with a temperature, which is shared."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.temperature = torch.nn.Parameter(torch.ones(1))

    def forward(self, user, item):
        user, item = super().forward(user, item)
        return (user * item).sum(-1) * self.temperature


class FedMine(WrappedRecommender):
    recommender = Mine
'''
    )
    own = {"model": "FedMine", "model_class": "my_bpr.FedMine", "dataset": "tiny"}
    result = run_recbole_fedras(config_dict=own, argv=COMMON)
    assert result["communication"]["parts"]["uplink"]["theta"] == 3 * 10 * 4
