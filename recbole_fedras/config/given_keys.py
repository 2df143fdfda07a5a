"""What users give: arguments, the dataset's name, what may change on resuming."""

from __future__ import annotations

from typing import Any

from recbole_fedras.config import recbole_keys
from recbole_fedras.config.checkpoint import plain
from recbole_fedras.config.forms import like
from recbole_fedras.config.sources import literal
from recbole_fedras.errors import ConfigError

#: Keys that say where a run finds what it needs, not what it does.
LOCAL = {"data_path", "gpu_id", "use_gpu"}

#: Keys that say how a run is carried out and shown, and change no result.
SHOWN = {
    "checkpoint_dir", "checkpoint_step", "deadline", "log_wandb", "min_shards",
    "n_jobs", "n_shards", "show_progress", "state", "wandb_project",
}  # fmt: skip

#: Keys by whose values a run is called anyway.
_NAMING = {
    "compressor", "dataset", "downlink_compressor", "model", "resume",
    "uplink_compressor",
}  # fmt: skip

#: Keys that may differ when a run is resumed: they do not change what was computed.
_RESUMABLE = {
    "epochs", "stopping_step", "resume", "checkpoint_dir", "data_path", "show_progress",
    "state", "gpu_id", "use_gpu", "n_jobs", "n_shards", "config_files", "log_wandb",
    "min_shards", "deadline",
    "uplink_mb_per_s", "downlink_mb_per_s",
    "wandb_project",
}  # fmt: skip

#: Those of them that decide, in a described world, whose updates count.
_OF_A_CLOCK = {"deadline", "uplink_mb_per_s", "downlink_mb_per_s"}


def refuse_changes(given: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse to resume a run with keys by which it would be another.

    Raises
    ------
    ConfigError
        That names the first of them.
    """
    free = _RESUMABLE - (_OF_A_CLOCK if saved.get("world") else set())
    for key in sorted(given.keys() - free):
        if plain(like(given[key], saved.get(key))) != saved.get(key):
            raise ConfigError(
                f"{key}={given[key]!r} cannot change when resuming: the run was "
                f"started with {saved.get(key)!r}"
            )


def unquoted(key: str, argument: str) -> Any:
    """Read an argument as a literal; one that is a name or a folder stays as it is.

    Examples
    --------
    >>> unquoted("epochs", "20"), unquoted("data_path", "20")
    (20, '20')
    """
    value = literal(argument)
    if recbole_keys.is_verbatim(key) and not isinstance(value, str | None):
        return argument
    return value


def dataset_name(name: Any, default: str) -> str:
    """Return the name of the dataset.

    Raises
    ------
    ConfigError
        For a path, or something else.
    """
    name = recbole_keys.read("dataset", default if name is None else name)
    folder, _, last = str(name).replace("\\", "/").rstrip("/").rpartition("/")
    if folder:
        raise ConfigError(
            f"dataset={name!r} is a path; give the dataset's name and the folder that "
            f"holds its folder: dataset={last}, data_path={folder}"
        )
    return str(name)


def changed(
    given: dict[str, Any], defaults: dict[str, Any], resolved: dict[str, Any]
) -> dict[str, Any]:
    """Return keys given whose values are not the defaults.

    Those that name a run anyway, or change nothing that it computes, are left out.

    Parameters
    ----------
    given, defaults : dict
    resolved : dict
        Every key's value in the end.
    """
    left_out = LOCAL | SHOWN | _NAMING
    return {
        key: resolved[key]
        for key in given
        if key not in left_out
        and not key.endswith("_class")
        and key in resolved
        and resolved[key] != plain(defaults.get(key))
    }
