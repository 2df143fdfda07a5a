"""Updates of any model as bytes, and federated averaging with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from recbole_fedras.beyond.averaging import Averaging, Examples, accuracy, train
from recbole_fedras.beyond.updates import (
    ErrorFeedback,
    Occasion,
    compress_update,
    decompress_update,
)
from recbole_fedras.compressor.base import Budget, RoundContext, row_update
from recbole_fedras.compressor.colr import CoLR
from recbole_fedras.compressor.eden import EDEN
from recbole_fedras.compressor.fedras.ce import CE
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.klt import KLT
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.compressor.topk import TopK
from recbole_fedras.errors import BudgetError, ConfigError, PayloadError


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 40), nn.Linear(40, 3)
    )


def update_of(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=rng)
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize("compressor", [KLT, FedRAS, TopK, SVD, EDEN])
@pytest.mark.parametrize("rate", [0.9, 0.5])
def test_bytes_are_within_the_rate_and_tell_something_of_each_tensor(compressor, rate):
    update, occasion = update_of(network()), Occasion(4, 7, 1)
    data = compress_update(update, compressor(), rate, occasion)
    received = decompress_update(data, network().state_dict(), compressor(), occasion)
    n_values = sum(value.numel() for value in update.values())
    least = min(0.8 * (1 - rate), 0.25)  # EDEN has 8 bits a value at most
    assert least * 4 * n_values < len(data) <= (1 - rate) * 4 * n_values
    assert list(received) == list(update)
    for name, value in update.items():
        assert received[name].shape == value.shape
        assert (received[name] - value).norm() < value.norm()
        assert value.dim() > 1 or torch.equal(received[name], value)
    assert data == compress_update(update, compressor(), rate, occasion)


def test_what_is_lossless_comes_back_to_the_bit_whatever_the_shapes():
    update = {
        "b": torch.randn(3, 5, 2, 2), "a": torch.randn(()), "empty": torch.zeros(0, 4),
        "half": torch.randn(9, 4).half(), "row": torch.randn(1, 6),
    }  # fmt: skip
    data = compress_update(update, NoCompression(), 0.0)
    received = decompress_update(data, update, NoCompression())
    for name, value in update.items():
        assert received[name].dtype == value.dtype
        assert torch.equal(received[name], value)


def test_rows_of_zeros_are_not_sent():
    update = {"embedding": torch.zeros(1000, 8)}
    update["embedding"][[3, 500]] = 1.0
    assert len(compress_update(update, NoCompression(), 0.0)) < 130


def test_feedback_brings_later_what_a_message_left_out():
    update, feedback = update_of(network()), ErrorFeedback()
    total = {name: torch.zeros_like(value) for name, value in update.items()}
    for round in range(40):
        occasion = Occasion(round)
        data = feedback.compress(update, TopK("global"), 0.7, occasion)
        for name, value in decompress_update(data, update, TopK(), occasion).items():
            total[name] += value
    for name, value in update.items():
        assert (total[name] / 40 - value).norm() < 0.25 * value.norm()


@pytest.mark.parametrize(
    ("update", "compressor", "error", "said"),
    [
        ({"steps": torch.tensor(3)}, KLT(), ConfigError, "'steps' is of torch.int64"),
        ({"w": torch.ones(9, 9)}, CE(), ConfigError, "CE .*the receiver's table"),
        ({"w": torch.ones(9, 9)}, CoLR(), ConfigError, "CoLR .*in its subspace"),
        ({"bias": torch.ones(400)}, KLT(), BudgetError, "leaves .* of 400 values"),
    ],
)
def test_what_cannot_be_compressed_is_refused(update, compressor, error, said):
    with pytest.raises(error, match=said):
        compress_update(update, compressor, 0.9)


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_bytes_that_are_no_update_are_refused(cut):
    update = update_of(network())
    data = compress_update(update, KLT(), 0.9)
    with pytest.raises(PayloadError):
        decompress_update(data[:cut], update, KLT())
    with pytest.raises(PayloadError, match=r"\d tensors arrived, of 1"):
        decompress_update(data, {"w": torch.ones(3, 3)}, KLT())


def test_eden_works_on_fewer_rows_wherever_it_says_that_it_works():
    """13 x 9 values take more scales than 16 x 9."""
    for n_bytes in range(70, 110):
        budget, ctx = Budget(16, 9, 0.9, n_bytes), RoundContext(0, 1, 16, 9)
        try:
            EDEN().validate(budget)
        except BudgetError:
            continue
        for n in range(17):
            update = row_update(np.arange(n), np.ones((n, 9), np.float32))
            EDEN().decode(EDEN().encode(update, budget, ctx), ctx)
        return
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.75])
def test_averaging_learns_from_clients_of_one_class_each(rate):
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 30, generator=rng)
    clients = [
        Examples(
            centre + 0.5 * torch.randn(40, 30, generator=rng), torch.full((40,), label)
        )
        for label, centre in enumerate(centres)
    ]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 24), nn.ReLU(), nn.Linear(24, 4))
    compressor = NoCompression() if rate == 0 else KLT()
    how = Averaging(compressor, rate, rounds=12, cohort=4)
    sent = train(model, clients, how)
    everything = Examples(*map(torch.cat, zip(*clients, strict=True)))
    assert accuracy(model, everything) > 0.9
    dense = 12 * 4 * 4 * sum(value.numel() for value in model.parameters())
    assert sent.uplink == pytest.approx((1 - rate) * dense, rel=0.15)
    assert sent.downlink == pytest.approx((1 - rate) * dense, rel=0.15)
