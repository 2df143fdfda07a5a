"""RecBole's keys in a federated run: what each may be, and which have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from recbole_fedras.config.forms import (
    BOOLEAN,
    COLUMNS,
    ENCODING,
    FOLDER,
    GPUS,
    INTERVALS,
    KEPT,
    LEVEL,
    NAME,
    NAMES,
    SEED,
    STRING,
    YES_OR_NO,
    Form,
    integer,
    like,
    mapping,
    number,
    one_of,
    optional,
    several,
)  # fmt: skip
from recbole_fedras.errors import ConfigError


class Key(NamedTuple):
    """A key that a federated run reads: the form of its value, and what it is for."""

    form: Form[Any]
    purpose: str


class Inert(NamedTuple):
    """A key that nothing here reads.

    Attributes
    ----------
    silent : tuple
        Values that ask for nothing, RecBole's default among them.
    remedy : str
        Why it has no effect, or what to use instead.
    """

    silent: tuple[Any, ...]
    remedy: str


_PER_FILE = "a dict from a file's suffix, as inter or item, to a list of fields"
_ALIASES = Key(optional(NAMES), "fields whose tokens are numbered with this one's")

#: Keys that say how a run is carried out.
_ENVIRONMENT = {
    "dataset": Key(NAME, "name of the dataset, whose folder data_path holds"),
    "data_path": Key(FOLDER, "folder of the datasets' folders"),
    "checkpoint_dir": Key(FOLDER, "folder of the runs' folders"),
    "resume": Key(optional(FOLDER), "checkpoint, or run folder, to continue"),
    "gpu_id": Key(GPUS, "GPUs to be seen, of which the first is used"),
    "use_gpu": Key(BOOLEAN, "whether to use one"),
    "seed": Key(SEED, "seed of all that is drawn"),
    "reproducibility": Key(BOOLEAN, "whether torch keeps to deterministic algorithms"),
    "state": Key(LEVEL, "level of the log"),
    "show_progress": Key(BOOLEAN, "whether to show the bar over rounds"),
    "log_wandb": Key(BOOLEAN, "whether to log to Weights & Biases"),
    "wandb_project": Key(NAME, "project there"),
    "loss_decimal_place": Key(integer(0), "decimals of losses in the log"),
    "metric_decimal_place": Key(integer(0), "decimals of metrics"),
}

#: Keys of files and their fields.
_DATA = {
    "field_separator": Key(STRING, "what stands between a line's fields"),
    "seq_separator": Key(STRING, "what stands between a sequence's entries"),
    "encoding": Key(optional(ENCODING), "encoding of atomic files"),
    "USER_ID_FIELD": Key(NAME, "field of users"),
    "ITEM_ID_FIELD": Key(NAME, "field of items"),
    "RATING_FIELD": Key(NAME, "field of ratings; only describes the file"),
    "TIME_FIELD": Key(NAME, "field that orders a user's interactions"),
    "LABEL_FIELD": Key(NAME, "field that models find labels in"),
    "seq_len": Key(optional(mapping(integer(1), "a dict from a field to a length")),
                   "longest sequence of a field"),
    "load_col": Key(optional(mapping(COLUMNS, _PER_FILE)), "fields to be loaded"),
    "unload_col": Key(optional(mapping(COLUMNS, _PER_FILE)), "fields not to be loaded"),
    "unused_col": Key(optional(mapping(COLUMNS, _PER_FILE)),
                      "fields that serve filters only"),
    "additional_feat_suffix": Key(optional(NAMES), "other files to be loaded"),
    "benchmark_filename": Key(
        optional(several(NAME, "a list of two or three names: of training, (validation "
                         "and) test files", sizes=(2, 3))),
        "files of a split that is given"),
    "alias_of_user_id": _ALIASES,
    "alias_of_item_id": _ALIASES,
    "preload_weight": Key(optional(mapping(NAME, "a dict from a field of ids to one of "
                                           "vectors")), "vectors of items"),
    "normalize_field": Key(optional(NAMES), "float fields brought to [0, 1]"),
    "normalize_all": Key(optional(YES_OR_NO), "whether all of them are"),
}  # fmt: skip

#: Keys that choose rows.
_FILTERS = {
    "rm_dup_inter": Key(optional(one_of("first", "last")), "which row of a pair stays"),
    "val_interval": Key(optional(mapping(KEPT, "a dict from a field to an interval, as "
                                         '"[4,inf)", or to a list of tokens')),
                        "rows that stay, by values"),
    "filter_inter_by_user_or_item": Key(BOOLEAN, "whether only users and items of the "
                                        ".user and .item file stay"),
    "user_inter_num_interval": Key(optional(INTERVALS), "size of users that stay"),
    "item_inter_num_interval": Key(optional(INTERVALS), "size of items that stay"),
}  # fmt: skip

#: Keys of the evaluation; ``eval_args`` has a file of its own.
_EVALUATION = {
    "metrics": Key(several(STRING, "names of metrics, one at least"), "measures"),
    "topk": Key(several(integer(1), "integers from 1, one at least"), "list lengths"),
    "valid_metric": Key(STRING, "metric that says which round is best"),
    "eval_batch_size": Key(integer(1), "scores computed at a time"),
    "eval_step": Key(integer(0), "rounds between evaluations"),
    "stopping_step": Key(integer(0), "evaluations without improvement before the end"),
    "repeatable": Key(BOOLEAN, "mode full: whether items of the past are ranked too"),
    "tail_ratio": Key(optional(number(above=0)),
                      "TailPercentage: share or number of items"),
}  # fmt: skip

#: Every key of RecBole's that a federated run reads; our own are in ``schema``.
KEYS = _ENVIRONMENT | _DATA | _FILTERS | _EVALUATION

_NONE = (None,)
_CLIENTS = "clients run plain SGD: "
_STATE = "data are read from data_path by every run, so that no old state is taken up"
_ONE = "a run is one process on one device; n_jobs sets its threads"
_SEQUENCE = "federated models take no sequences"
_GRAPH = "federated models take no knowledge graphs"
_INTERVALS = (None, "[0,inf)")

#: RecBole's keys that nothing here reads.
WITHOUT_EFFECT = {
    "learner": Inert(("sgd",), f"{_CLIENTS}sgd; see user_optimizer, server_optimizer"),
    "clip_grad_norm": Inert(_NONE, f"{_CLIENTS}transforms: [clip] bounds updates"),
    "enable_amp": Inert((False,), f"{_CLIENTS}in float32"),
    "enable_scaler": Inert((False,), f"{_CLIENTS}in float32"),
    "require_pow": Inert((False,), "no model has RecBole's regularisation"),
    "reg_weight": Inert(_NONE, "no model has RecBole's regularisation"),
    "loss_type": Inert(_NONE, "local_loss chooses bce or bpr"),
    "transform": Inert(_NONE, "transforms names what is done to updates"),
    "shuffle": Inert((True,), "clients draw the order of their samples from seed"),
    "training_neg_sample_num": Inert(_NONE, "use train_neg_sample_args"),
    "neg_sampling": Inert(_NONE, "use train_neg_sample_args"),
    "save_step": Inert(_NONE, "checkpoint_step sets the rounds between checkpoints"),
    "save_dataset": Inert((False,), _STATE),
    "dataset_save_path": Inert(_NONE, _STATE),
    "save_dataloaders": Inert((False,), _STATE),
    "dataloaders_save_path": Inert(_NONE, _STATE),
    "worker": Inert((0,), "n_jobs sets the threads"),
    "nproc": Inert((None, 1), _ONE),
    "world_size": Inert((None, -1, 1), _ONE),
    "local_rank": Inert((), _ONE),
    "group_offset": Inert((None, 0), _ONE),
    "offset": Inert((None, 0), _ONE),
    "ip": Inert((None, "localhost"), _ONE),
    "port": Inert((None, "5678", 5678), _ONE),
    "threshold": Inert(
        _NONE, "every row is a positive: keep liked ones by val_interval, as "
        "{'rating': '[4,inf)'}"),
    "numerical_features": Inert((None, []), "models take no features of this kind"),
    "discretization": Inert(_NONE, "models take no features of this kind"),
    "token_num_threshold": Inert(_NONE, "models take no features of this kind"),
    "double_tower": Inert((None, False), "models take no features of this kind"),
    "NEG_PREFIX": Inert(("neg_",), "clients draw their negatives themselves"),
    "ITEM_LIST_LENGTH_FIELD": Inert(("item_length",), _SEQUENCE),
    "LIST_SUFFIX": Inert(("_list",), _SEQUENCE),
    "MAX_ITEM_LIST_LENGTH": Inert((50,), _SEQUENCE),
    "POSITION_FIELD": Inert(("position_id",), _SEQUENCE),
    "HEAD_ENTITY_ID_FIELD": Inert(("head_id",), _GRAPH),
    "TAIL_ENTITY_ID_FIELD": Inert(("tail_id",), _GRAPH),
    "RELATION_ID_FIELD": Inert(("relation_id",), _GRAPH),
    "ENTITY_ID_FIELD": Inert(("entity_id",), _GRAPH),
    "kg_reverse_r": Inert((False,), _GRAPH),
    "entity_kg_num_interval": Inert(_INTERVALS, _GRAPH),
    "relation_kg_num_interval": Inert(_INTERVALS, _GRAPH),
    "alias_of_entity_id": Inert(_NONE, _GRAPH),
    "alias_of_relation_id": Inert(_NONE, _GRAPH),
    "config_files": Inert(_NONE, "files are given by argument, or config_file_list"),
    "MODEL_TYPE": Inert((), "it follows from model"),
}  # fmt: skip


def read(key: str, value: Any) -> Any:
    """Return one of RecBole's values as it is used.

    Raises
    ------
    ConfigError
        If it may not be, or has no effect.
    """
    inert = WITHOUT_EFFECT.get(key)
    if inert and like(value, next(iter(inert.silent), None)) not in inert.silent:
        raise ConfigError(
            f"{key}={value!r} is not allowed: it has no effect in a federated run; "
            f"{inert.remedy}"
        )
    if key not in KEYS:
        return value
    form, purpose = KEYS[key]
    try:
        return form.read(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{key}={value!r} is not allowed; it must be {form.allowed} ({purpose})"
        ) from error


def is_verbatim(key: str) -> bool:
    """Whether an argument is taken as it is written, where it looks like a number."""
    return key in KEYS and KEYS[key].form.verbatim


def of_data(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that say which columns and rows are read, and how."""
    return {key: keys[key] for key in sorted({*_DATA, *_FILTERS} & keys.keys())}
