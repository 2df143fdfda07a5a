"""What a comparison compares: methods and their settings, by what tables call them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import Config, registry
from recbole_fedras.config.sources import read_arguments
from recbole_fedras.errors import ConfigError
from recbole_fedras.experiments.identity import Keys
from recbole_fedras.experiments.sweep import RELABELLING

#: Keys that runs of compressors at rates differ in.
_COMPARED = RELABELLING | {"compression_rate", "seed"}

#: Between values of which a run takes each.
_OR = "|"

#: A word of a run: no blanks, but in quotation marks, lists and dicts of dicts.
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|\[[^]]*]|{(?:[^{}]|{[^{}]*})*}|\S)+""")


def methods_of(
    compressors: Sequence[str], rates: Sequence[float], keys: Keys
) -> dict[str, Keys]:
    """Return the keys of each compressor at each rate, by what the table calls it.

    One that has no use for a rate runs at one.

    Parameters
    ----------
    compressors : sequence of str
    rates : sequence of float
    keys : dict
        Keys that all have in common. ``compressor`` and ``compressor_class`` together
        declare a compressor of one's own that ``compressors`` may name.

    Raises
    ------
    ConfigError
        If ``keys`` have one that the runs differ in.
    """
    refused = sorted(_COMPARED & keys.keys())
    if "compressor" in keys and "compressor_class" not in keys:
        refused.append("compressor")
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} must not be set: that is what is compared, by "
            "--compressors, --compression_rates and --seeds"
        )
    methods: dict[str, Keys] = {}
    for name, rate in product(dict.fromkeys(compressors), sorted(set(rates))):
        own = _shared(keys, name) | {"compressor": name, "compression_rate": rate}
        obeys_rate = Config(config_dict=own).obeys_rate
        label = f"{name} {100 * rate:.10g} %" if obeys_rate else name
        methods.setdefault(label, own)
    return methods


def read_runs(runs: Sequence[str], keys: Keys) -> dict[str, Keys]:
    """Return the keys of runs as they are written, by what the table calls them.

    Parameters
    ----------
    runs : sequence of str
        Of each words: compressors and presets by name, YAML files, and ``key=value``. A
        word with ``|`` stands for as many runs as it has parts.
    keys : dict
        Keys that all have in common: above a run's files, below its other words.

    Raises
    ------
    ConfigError
        That names the run.

    Examples
    --------
    >>> runs = read_runs(["none", "FedRAS alpha=0.2|0.4"], {"epochs": 60})
    >>> list(runs)
    ['none', 'FedRAS alpha=0.2', 'FedRAS alpha=0.4']
    >>> runs["FedRAS alpha=0.4"]
    {'epochs': 60, 'compressor': 'FedRAS', 'alpha': 0.4}
    """
    if "seed" in keys:
        raise ConfigError("seed must not be set: runs differ in it, by --seeds")
    methods: dict[str, Keys] = {}
    for run in runs:
        for chosen in product(*map(_alternatives, _words(run))):
            label = " ".join(Path(word).stem if _is_file(word) else word
                             for word in chosen)  # fmt: skip
            if not label or label in methods:
                what = "names nothing" if not label else f"says {label!r} again"
                raise ConfigError(f"--run={run!r} {what}")
            try:
                methods[label] = _keys_of(chosen, keys)
            except ConfigError as error:
                raise ConfigError(f"--run={run!r}: {error}") from error
    return methods


def files_of_runs(runs: Sequence[str]) -> list[str]:
    """Return the YAML files that runs name."""
    named = (word for run in runs for word in _words(run))
    return [file for word in named for file in word.split(_OR) if _is_file(file)]


def _words(run: str) -> list[str]:
    """Return the words of a run; names without quotation marks.

    Examples
    --------
    >>> _words("'my own.yaml' FedRAS topk=[5, 10] eval_args={'mode': 'full'}")
    ['my own.yaml', 'FedRAS', 'topk=[5, 10]', "eval_args={'mode': 'full'}"]
    """
    found = _WORD.findall(run)
    return [word if "=" in word else word.strip("'\"") for word in found]


def _is_file(word: str) -> bool:
    return "=" not in word and word.endswith((".yaml", ".yml"))


def _alternatives(word: str) -> list[str]:
    """Return what a word of a run stands for, each with its key if it has one."""
    key, equals, values = word.removeprefix("--").rpartition("=")
    return [f"{key}{equals}{value}" for value in values.split(_OR)]


def _keys_of(chosen: Sequence[str], keys: Keys) -> Keys:
    """Return a run's keys: of its files, then those of all, then of its words."""
    files = [word for word in chosen if _is_file(word)]
    argv = [_as_key(word, keys) for word in chosen if not _is_file(word)]
    given: Keys = {}
    for source in (*map(registry.read_yaml, files), read_arguments(argv)):
        given |= source
    of_class = str(given.get("compressor_class", "")).rpartition(".")[2]
    shared = _shared(keys, given.get("compressor") or of_class or None)
    return Config(None, None, files, shared, argv).external_config_dict


def _as_key(word: str, keys: Keys) -> str:
    """Return ``--key=value`` for a name, too.

    Raises
    ------
    ConfigError
        If nothing has that name.
    """
    if "=" in word:
        return f"--{word}"
    known = dict.fromkeys(registry.names("preset"), "preset")
    known |= dict.fromkeys(registry.names("compressor"), "compressor")
    known |= {keys["compressor"]: "compressor"} if "compressor_class" in keys else {}
    if word not in known:
        near = registry.nearest(word, list(known))
        raise ConfigError(
            f"there is no compressor, preset or YAML file {word!r}; {near}keys are "
            "given as key=value"
        )
    return f"--{known[word]}={word}"


def _shared(keys: Keys, name: str | None) -> Keys:
    """Return those keys of all that a run with a compressor of that name has.

    What belongs to another one, of the user's own, is left out.
    """
    if name in (None, keys.get("compressor")):
        return keys
    belonging = {"compressor", "compressor_class"}
    if path := keys.get("compressor_class"):
        found = registry.load_class("compressor_class", path, Compressor)
        belonging |= registry.hyper_parameters(found).keys()
    return {key: value for key, value in keys.items() if key not in belonging}
