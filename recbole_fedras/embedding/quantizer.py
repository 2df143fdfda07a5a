"""Residual quantisation of item vectors: by k-means, or by an autoencoder."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import nn

from recbole_fedras.errors import ConfigError
from recbole_fedras.numeric.parallel import single_threaded, threads

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_BATCH = 1024  # ours
_LEARNING_RATE = 1e-3  # Adam's default
_COMMITMENT = 0.25  # latent_loss_weight of the RQ-VAE's released configurations


def residual_kmeans(
    vectors: Floats, n_levels: int, n_codes: int, seed: int
) -> tuple[Ints, Floats]:
    """Quantise vectors level by level, each the rest that those before leave.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
    n_levels, n_codes : int
        At most as many codes as there are vectors.
    seed : int

    Returns
    -------
    codes : ndarray of int64, shape (n, n_levels)
    codebooks : ndarray of float32, shape (n_levels, n_codes, dim)
    """
    # One thread: more would add up in no certain order. A seed for each level, so that
    # levels are not drawn alike.
    rest, codes, codebooks = np.array(vectors), [], []
    with threads(1), single_threaded():
        for level in range(n_levels):
            model = KMeans(n_codes, n_init=1, random_state=(seed + level) % 2**32)
            codes.append(model.fit_predict(rest).astype(np.int64))
            codebooks.append(model.cluster_centers_.astype(np.float32))
            rest -= codebooks[-1][codes[-1]]
    return np.stack(codes, axis=1), np.stack(codebooks)


def rq_vae(
    features: Floats, n_levels: int, n_codes: int, seed: int, dim: int, n_epochs: int
) -> Ints:
    """Train an RQ-VAE and return its codes, shape (n, n_levels).

    Source: Lee et al., "Autoregressive Image Generation using Residual Quantization"
    (CVPR 2022): encoder, residual quantiser, decoder; squared error of what is
    reconstructed, and the commitment loss with 0.25. Codebooks start from k-means of
    the first batch at each level, and codes that nothing falls on any more start again.

    Parameters
    ----------
    features : ndarray of float32, shape (n, n_features)
    n_levels, n_codes, seed : int
        As for :func:`residual_kmeans`.
    dim : int
        Of what is quantised.
    n_epochs : int
        With Adam, batches of 1,024.

    Raises
    ------
    ConfigError
        If the package ``vector-quantize-pytorch`` is not installed.
    """
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError as missing:
        raise ConfigError(
            "item_embedding=rq with item_base=features trains an RQ-VAE, which needs "
            'the package vector-quantize-pytorch: pip install "recbole-fedras[rq]"'
        ) from missing
    # Centre features by column; one scale for all, so that none gains weight by it.
    inputs = torch.from_numpy((features - features.mean(0)) / (features.std() + 1e-12))
    hidden = max(2 * dim, 128)
    # One thread and a forked generator: the same codes on any number of cores, and no
    # other draw of the run changes.
    with threads(1), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        width = inputs.shape[1]
        encoder = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )
        decoder = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )
        quantizer = ResidualVQ(
            dim=dim,
            num_quantizers=n_levels,
            codebook_size=n_codes,
            kmeans_init=True,
            commitment_weight=_COMMITMENT,
            threshold_ema_dead_code=1,
        )
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
        # What is reconstructed from the codes, and how far vectors are from them; the
        # codebooks themselves follow as moving averages, inside the quantiser.
        for _ in range(n_epochs):
            for batch in torch.split(torch.randperm(len(inputs)), _BATCH):
                quantized, _, commitment = quantizer(encoder(inputs[batch]))
                error = nn.functional.mse_loss(decoder(quantized), inputs[batch])
                optimizer.zero_grad()
                (error + commitment.sum()).backward()
                optimizer.step()
        # Codes of all items, from the trained encoder; eval leaves the codebooks alone.
        quantizer.eval()
        with torch.no_grad():
            _, codes, _ = quantizer(encoder(inputs))
    found: Ints = codes.numpy()
    return found
