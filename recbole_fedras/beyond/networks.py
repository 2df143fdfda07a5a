"""Two small networks, for images and for series alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_fedras.errors import ConfigError


def make_network(name: str, inputs: Tensor, n_classes: int, seed: int) -> nn.Module:
    """Make a network for such inputs; its first weights depend on the seed alone.

    ``MLP`` has one hidden layer of 128; ``CNN`` two convolutions of 16 channels, of
    time or of the plane, and a hidden layer of 64.

    Parameters
    ----------
    name : {'MLP', 'CNN'}
    inputs : Tensor, shape (n, channels, length) or (n, channels, height, width)
    n_classes, seed : int

    Raises
    ------
    ConfigError
        If there is none of that name.

    Examples
    --------
    >>> network = make_network("CNN", torch.zeros(5, 1, 8, 8), 10, seed=1)
    >>> network(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    require_network(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _NETWORKS[name](inputs[:1], n_classes)


def require_network(name: str) -> None:
    """Refuse a network that is unknown.

    Raises
    ------
    ConfigError
    """
    if name not in _NETWORKS:
        raise ConfigError(f"model={name!r} must be one of {', '.join(_NETWORKS)}")


def _mlp(inputs: Tensor, n_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs.numel(), 128),
        nn.ReLU(),
        nn.Linear(128, n_classes),
    )


def _cnn(inputs: Tensor, n_classes: int) -> nn.Module:
    flat = inputs.dim() == 3
    convolution, pool = (nn.Conv1d, nn.MaxPool1d) if flat else (nn.Conv2d, nn.MaxPool2d)
    layers = [
        convolution(inputs.shape[1], 16, 3, padding=1), nn.ReLU(), pool(2),
        convolution(16, 16, 3, padding=1), nn.ReLU(), pool(2), nn.Flatten(),
    ]  # fmt: skip
    size = nn.Sequential(*layers)(inputs).shape[1]
    return nn.Sequential(
        *layers, nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, n_classes)
    )


_NETWORKS = {"MLP": _mlp, "CNN": _cnn}
