"""The keys that hold dicts: completed from their defaults, ``eval_args`` checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recbole_fedras.config.forms import is_number
from recbole_fedras.config.values import check_names, refuse

if TYPE_CHECKING:
    from recbole_fedras.config.config import Config

#: Keys whose parts not given keep what is set beneath them.
LAYERED = ("eval_args", "train_neg_sample_args", "load_col")

_FIELDS = ("USER_ID_FIELD", "ITEM_ID_FIELD", "RATING_FIELD", "TIME_FIELD")

_SPLITS = ("LS", "RS", "TS")
_LEAVE_ONE_OUT = ("valid_and_test", "test_only")  # RecBole evaluates no other
_MODE = re.compile(r"full|(uni|pop)[1-9][0-9]*")
_PHASES = ("valid", "test")

#: What only other distributions of negatives read, at RecBole's defaults.
_OF_OTHERS = {"alpha": 1.0, "dynamic": False, "candidate_num": 0}


def layer(older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """Put keys over others; a dict's parts that are not given stay as they were.

    Examples
    --------
    >>> layer({"eval_args": {"order": "TO", "mode": "uni99"}},
    ...       {"eval_args": {"mode": {"test": "full"}}})["eval_args"]
    {'order': 'TO', 'mode': {'valid': 'uni99', 'test': 'full'}}
    """
    merged = older | newer
    for key in LAYERED:
        beneath, over = older.get(key), newer.get(key)
        if isinstance(beneath, dict) and isinstance(over, dict):
            merged[key] = beneath | over
            if isinstance(over.get("mode"), dict):
                merged[key]["mode"] = _by_phase(beneath.get("mode")) | over["mode"]
    return merged


def follow_fields(
    beneath: dict[str, Any], standard: dict[str, Any], given: dict[str, Any]
) -> None:
    """Let ``load_col`` by default load the fields that keys name, in place.

    Parameters
    ----------
    beneath : dict
        The defaults.
    standard : dict
        RecBole's, for what the fields are called there.
    given : dict
        What users set.
    """
    if isinstance(beneath["load_col"], dict):
        names = {standard[key]: str(given.get(key, beneath[key])) for key in _FIELDS}
        beneath["load_col"] = {
            suffix: [names.get(field, field) for field in fields]
            for suffix, fields in beneath["load_col"].items()
        }


def _by_phase(mode: Any) -> dict[str, Any]:
    if mode is None:
        return {}
    return mode if isinstance(mode, dict) else dict.fromkeys(_PHASES, mode)


def check(config: Config) -> None:
    """Check these keys, and that the fields that others name are to be loaded."""
    _check_eval_args(config)
    _check_negatives(config)
    _check_fields(config)


def _check_eval_args(config: Config) -> None:
    """Check how the data are to be split, and what is ranked among what."""
    if not isinstance(config["eval_args"], dict):
        refuse(config, "eval_args", "a dict, of split, order and mode")
    check_names(config, "eval_args", {"split", "group_by", "order", "mode"})
    split = config["eval_args"].get("split")
    if not isinstance(split, dict) or len(split) != 1 or set(split) - {*_SPLITS}:
        refuse(config, "eval_args", f"with a split by one of {', '.join(_SPLITS)}")
    ((way, how),) = split.items()
    if way == "LS" and how not in _LEAVE_ONE_OUT:
        refuse(config, "eval_args", f"with LS one of {', '.join(_LEAVE_ONE_OUT)}")
    if way != "LS":
        _check_ratios(config, way, how)
    if config["eval_args"].get("order") not in ("RO", "TO"):
        refuse(config, "eval_args", "with order RO or TO")
    groups = ("user", "none", None) if way == "RS" else ("user",)
    if config["eval_args"].get("group_by") not in groups:
        names = " or ".join(map(str, groups[:2]))
        refuse(config, "eval_args", f"with group_by {names} for {way}")
    _check_modes(config, config["eval_args"].get("mode"))


def _check_ratios(config: Config, way: str, how: Any) -> None:
    names = ("train", "valid", "test")
    if not (
        isinstance(how, list)
        and len(how) == len(names)
        and all(is_number(ratio) and ratio >= 0 for ratio in how)
        and how[0] > 0
        and how[2] > 0
    ):
        allowed = f"with {way} three ratios >= 0, of {names}; > 0 but for valid"
        refuse(config, "eval_args", allowed)


def _check_modes(config: Config, mode: Any) -> None:
    modes = _by_phase(mode)
    if not modes or set(modes) - {*_PHASES}:
        refuse(config, "eval_args", "with a mode like uni99 or full, of valid and test")
    for value in modes.values():
        if not isinstance(value, str) or not _MODE.fullmatch(value):
            refuse(config, "eval_args", "with a mode like uni99 or full, or pop99")


def _check_negatives(config: Config) -> None:
    """Check what training samples are drawn by, beside their number."""
    if not isinstance(config["train_neg_sample_args"], dict):
        refuse(config, "train_neg_sample_args", "a dict with sample_num")
    names = {"distribution", "sample_num", *_OF_OTHERS}
    check_names(config, "train_neg_sample_args", names)
    for name, only in _OF_OTHERS.items():
        if config["train_neg_sample_args"].get(name, only) != only:
            refuse(
                config,
                "train_neg_sample_args",
                f"with {name}: {only}, which uniform negatives do not depend on",
            )


def _check_fields(config: Config) -> None:
    """Check that the fields that keys name are among those to be loaded."""
    columns = config["load_col"]
    if columns is None:
        return
    _check_columns(config, columns)
    if "*" in columns.values():
        return
    loaded = sorted({field for fields in columns.values() for field in fields})
    for key, fields in _named_fields(config):
        for field in fields:
            if field not in loaded:
                refuse(config, key, f"of fields that load_col names: {loaded}")


def _check_columns(config: Config, columns: dict[str, Any]) -> None:
    for suffix in config["unload_col"] or {}:
        if columns.get(suffix) != "*":
            allowed = f"of files that load_col loads whole, by {{{suffix}: *}}"
            refuse(config, "unload_col", allowed)
    for suffix, fields in (config["unused_col"] or {}).items():
        of_file = columns.get(suffix, [])
        if of_file != "*" and set(fields) - set(of_file):
            allowed = f"fields that load_col loads of {suffix}: {of_file}"
            refuse(config, "unused_col", allowed)


def _named_fields(config: Config) -> Iterator[tuple[str, list[str]]]:
    for key in ("alias_of_user_id", "alias_of_item_id", "normalize_field"):
        yield key, list(config[key] or [])
    for key in ("seq_len", "val_interval", "preload_weight"):
        yield key, list(config[key] or {})
    yield "preload_weight", list((config["preload_weight"] or {}).values())
