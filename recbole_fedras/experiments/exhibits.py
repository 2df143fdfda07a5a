"""What an exhibit is: its runs, their labels and the paper's numbers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recbole_fedras.config import registry
from recbole_fedras.errors import ConfigError
from recbole_fedras.experiments.clients import train_and_test_clients
from recbole_fedras.experiments.entries import Entry, entries_of
from recbole_fedras.experiments.identity import Keys, Measure, Resolver
from recbole_fedras.experiments.leak import leak
from recbole_fedras.experiments.measures import (
    group_sizes,
    information_loss,
    transfer_time,
)
from recbole_fedras.experiments.network import NetworkResolver, train_network
from recbole_fedras.experiments.outcome import train_and_test
from recbole_fedras.experiments.sweep import RELABELLING

_MEASURES: dict[str, Measure] = {
    "train_and_test": train_and_test,
    "train_and_test_clients": train_and_test_clients,
    "information_loss": information_loss,
    "group_sizes": group_sizes,
    "transfer_time": transfer_time,
    "leak": leak,
    "train_network": train_network,
}

#: Of exhibits that name no others.
SEEDS = (2020, 1, 2)

#: Keys that not all runs of an exhibit can be given, and why.
_REFUSED = {
    "resume": "finished runs are kept",
    "dataset": "say --dataset",
    "model": "say --model",
    "epochs": "say --rounds",
    "seed": "say --seeds",
    "n_jobs": "say --jobs",
    "checkpoint_dir": "say --output",
    "show_progress": "its bar is over runs",
} | dict.fromkeys(
    {
        "compressor", "compressor_class", "metrics", "model_class", "preset", "topk",
        *RELABELLING,
    },
    "the exhibit has its own",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A table or figure, as ``properties/experiment/{name}.yaml`` says.

    The file's keys: ``like``, another exhibit, if it only says in which keys and
    methods it differs from that; ``title``; ``measure``, if it is another than
    training and testing; ``figure``, the name of its x-axis, if it is one, and what
    ``drawn`` along it: ``settings``, as lines or as ``bars``, ``models`` as bars,
    ``metrics``, ``rounds``, ``hours``, ``bytes``, ``privacy`` or ``heat``, a map of
    learning rates and weight decays, which settings name; ``metrics``, of the test,
    of the exposure of an attack's targets, or ``epsilon``; ``datasets``; ``models``;
    ``keys`` of all runs; ``methods`` and ``settings``, each a label with keys, a
    setting's perhaps by dataset; ``learning_rates``, the grid for methods that name
    none, perhaps by model, and ``tuning``, keys of the setting that they are chosen in,
    perhaps by dataset, the first if it says none; ``tuned_by_setting``, if each
    setting has learning rates of its own, chosen with its keys and those of
    ``tuning``; ``jobs``, if only so many runs may be under way; ``seeds``, if
    others than usual; and ``paper``, values by dataset, model and method, a list
    for each setting.
    """

    name: str
    title: str
    metrics: list[str]
    entries: list[Entry]
    figure: str | None = None
    drawn: str = "settings"
    measure: Measure = train_and_test
    jobs: int | None = None
    seeds: tuple[int, ...] = SEEDS

    def resolver(self) -> Resolver:
        """Return what finds the identities of its runs."""
        networks = self.measure is train_network
        return NetworkResolver() if networks else Resolver()


def read_exhibit(
    name: str,
    datasets: Sequence[str] = (),
    models: Sequence[str] = (),
    rounds: int | None = None,
    without: Sequence[str] = (),
    keys: Keys | None = None,
) -> Exhibit:
    """Read an exhibit, for some of its datasets and models, or all.

    Parameters
    ----------
    name : str
        Of ``properties/experiment/{name}.yaml``.
    datasets, models : sequence of str
        Only these; all, if there are none.
    rounds : int, optional
        Of all runs but of methods that say how many.
    without : sequence of str
        Methods to leave out.
    keys : dict, optional
        Of all runs, in place of the exhibit's ``keys``; ``tuning`` and methods keep
        what they say.

    Returns
    -------
    Exhibit
        Whose name and title say what it has been given, as
        ``table1-ml-1m-MF-init_std-0.3-200-rounds``.

    Raises
    ------
    ConfigError
        If there is none of that name, it has not that dataset, model or method, no
        method is left, or a key is what its runs differ in.
    """
    exhibit = exhibit_keys(name)
    _check_choices(
        name,
        ("dataset", datasets, _choices(exhibit, "dataset")),
        ("model", models, _choices(exhibit, "model")),
        ("without", without, list(exhibit["methods"])),
    )
    datasets, models = list(dict.fromkeys(datasets)), list(dict.fromkeys(models))
    exhibit |= {"datasets": datasets or exhibit["datasets"]}
    exhibit |= {"models": models or exhibit["models"]}
    left_out = [method for method in exhibit["methods"] if method in without]
    for method in left_out:
        del exhibit["methods"][method]
    if not exhibit["methods"]:
        raise ConfigError(f"--without leaves no method in {name}")
    keys = dict(sorted((keys or {}).items()))
    if keys:
        _refuse(keys, name, exhibit)
    part, labels = _labels(left_out, keys, rounds)
    keys = keys | ({} if rounds is None else {"epochs": rounds})
    exhibit |= {"keys": exhibit.get("keys", {}) | keys}
    return Exhibit(
        "-".join([name, *datasets, *models, *part]),
        ", ".join([exhibit["title"], *labels]),
        exhibit["metrics"],
        list(entries_of(exhibit)),
        exhibit.get("figure"),
        exhibit.get("drawn", "settings"),
        _MEASURES[exhibit.get("measure", "train_and_test")],
        exhibit.get("jobs"),
        tuple(exhibit.get("seeds", SEEDS)),
    )


def _check_choices(name: str, *asked: tuple[str, Sequence[str], list[str]]) -> None:
    for option, values, have in asked:
        for value in values:
            if value not in have:
                raise ConfigError(
                    f"--{option}={value!r} is not in {name}, which has "
                    f"{'; '.join(have)}"
                )


def _labels(
    left_out: list[str], keys: Keys, rounds: int | None
) -> tuple[list[str], list[str]]:
    """Say what part of an exhibit it is, for a file's name and for a title."""
    part, labels = [], []
    for method in left_out:
        part.append(f"without-{re.sub(r'[^.0-9A-Za-z-]+', '-', method)}")
        labels.append(f"without {method}")
    if keys:
        part.append(_file_part(keys))
        labels += [f"{key}={value}" for key, value in keys.items()]
    if rounds is not None:
        part.append(f"{rounds}-rounds")
        labels.append(f"{rounds} rounds")
    return part, labels


def has_part(name: str, datasets: Sequence[str], models: Sequence[str]) -> bool:
    """Whether an exhibit has all of these datasets and models."""
    exhibit = exhibit_keys(name)
    return {*datasets} <= {*_choices(exhibit, "dataset")} and {*models} <= {
        *_choices(exhibit, "model")
    }


def exhibit_keys(name: str) -> dict[str, Any]:
    """Read the keys of an exhibit, those of the one that it is ``like`` beneath them.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    known = list(registry.names("experiment"))
    if name not in known:
        raise ConfigError(
            f"exhibit {name!r} is unknown; {registry.nearest(name, known)}"
            f"known: {', '.join(known)}"
        )
    exhibit = registry.read_properties("experiment", name)
    if "like" not in exhibit:
        return exhibit
    whole = exhibit_keys(exhibit.pop("like"))
    return whole | exhibit | {"methods": whole["methods"] | exhibit.get("methods", {})}


def _choices(exhibit: dict[str, Any], key: str) -> list[str]:
    """Return what an exhibit has; of more datasets it may have numbers only."""
    more = exhibit.get("paper", {}) if key == "dataset" else {}
    return list(dict.fromkeys([*exhibit[f"{key}s"], *more]))


def _refuse(keys: Keys, name: str, exhibit: dict[str, Any]) -> None:
    """Raise a ConfigError for a key by which runs would not be what they are called."""
    labelled = {
        key
        for labels in (exhibit["methods"], exhibit["settings"])
        for keys_of_label in labels.values()
        for dataset in exhibit["datasets"]
        for key in keys_of_label.get(dataset, keys_of_label)
        if key != "learning_rate"  # methods that name one keep it
    }
    refused = _REFUSED | dict.fromkeys(labelled, "its methods or settings differ in it")
    for key, why in refused.items():
        if key in keys:
            raise ConfigError(f"--{key}={keys[key]} cannot be set for {name}: {why}")


def _file_part(keys: Keys) -> str:
    """Name keys and values, or a digest of them, where a file's name cannot."""
    label = "-".join(f"{key}-{value}" for key, value in keys.items())
    if re.fullmatch(r"[-.\w]{1,80}", label):
        return label
    return f"keys-{hashlib.sha256(label.encode()).hexdigest()[:10]}"
