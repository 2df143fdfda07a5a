"""Which keys' values go together, and with the methods that are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recbole.evaluator import metrics_dict
from recbole.evaluator.base_metric import TopkMetric
from recbole.utils import EvaluatorType

from recbole_fedras.compressor import Compressor
from recbole_fedras.compressor.base import REAL
from recbole_fedras.config import registry
from recbole_fedras.config.forms import (
    BOOLEAN,
    STRING,
    integer,
    number,
    one_of,
    optional,
    several,
)
from recbole_fedras.config.values import read, refuse
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.server.aggregation import Aggregator
from recbole_fedras.federation.transforms import Transform

if TYPE_CHECKING:
    from recbole_fedras.config.config import Config

#: Keys that say nothing of a run in no described world.
OF_A_WORLD = (
    "device_gflops", "availability", "activity_correlation", "dropout",
    "over_selection", "staleness_window", "staleness_exponent", "server_seconds",
    "uplink_joules_per_mb", "downlink_joules_per_mb", "joules_per_gflop",
)  # fmt: skip

#: Keys without effect where another, which is named, is not set.
_ONLY_WITH = (
    (OF_A_WORLD, "world", "a world (docs/time.md)"),
    (("attack_share",), "attack", "an attack, which attack names"),
    (
        ("secure_neighbours", "secure_bound"),
        "secure_aggregation",
        "secure_aggregation=True",
    ),
)

_Carrier = type[Compressor] | type[Aggregator] | type[Transform]
_CARRIERS: dict[str, _Carrier] = {
    "compressor": Compressor,
    "aggregation": Aggregator,
    "transform": Transform,
}


def check_bases(config: Config) -> None:
    """Check keys that an item embedding is made with."""
    read(config, "use_base", BOOLEAN)
    read(config, "item_base", one_of("random", "warmup", "features"))
    read(config, "base_std", number(above=0))
    read(config, "warmup_rounds", integer(1))
    fields = optional(several(STRING, "a list of fields"))
    if isinstance(config["item_features"], str):
        refuse(config, "item_features", fields.allowed)
    read(config, "item_features", fields)


def check_federated(config: Config) -> None:
    """Check what else a federated run depends on."""
    config.run_settings(), config.model_settings()
    config.data_settings(), config.evaluation_settings()
    read(config, "report_contraction", BOOLEAN)
    _check_candidates(config)
    _check_metrics(config)
    _check_shards(config)


def _check_candidates(config: Config) -> None:
    modes = config["eval_args"]["mode"]
    for phase, mode in modes.items():
        if mode[:3] == "uni" and max(config["topk"]) > int(mode[3:]) + 1:
            refuse(config, "topk", f"at most the candidates of mode {phase}: {mode}")
        if config["eval_candidates"] != "recbole" and mode.startswith("pop"):
            allowed = f"'recbole' for eval_args mode {phase}: {mode}"
            refuse(config, "eval_candidates", allowed)
    drawn = "full" not in modes.values()
    if config["eval_candidates"] == "file" and modes["test"] == "full":
        refuse(config, "eval_candidates", "fixed with eval_args mode test: full")
    if config["repeatable"] and drawn and config["eval_candidates"] != "recbole":
        allowed = "False but for mode full: candidates are never of a user's past"
        refuse(config, "repeatable", allowed)


def _check_metrics(config: Config) -> None:
    for name, _ in config.parts.metrics:
        if name not in config["metrics"]:
            refuse(config, "metrics", f"with {name}, which metric_class names")
    if config["eval_type"] != EvaluatorType.RANKING:
        refuse(config, "metrics", "metrics of rankings: clients know no other labels")
    metrics = [metric.lower() for metric in config["metrics"]]
    names = [f"{metric}@{k}" for metric in metrics for k in config["topk"]]
    names += [metric for metric in metrics if not _has_lengths(metric)]
    if config["valid_metric"].lower() not in names:
        refuse(config, "valid_metric", f"one of {names}, from metrics and topk")
    if config["tail_ratio"] is not None and "tailpercentage" not in metrics:
        refuse(config, "tail_ratio", "left out without TailPercentage in metrics")
    bigger = config.external_config_dict.get("valid_metric_bigger")
    if bigger not in (None, config["valid_metric_bigger"]):
        allowed = f"left out: it follows from valid_metric={config['valid_metric']}"
        raise ConfigError(f"valid_metric_bigger={bigger} must be {allowed}")


def _check_shards(config: Config) -> None:
    """Refuse what is no sum over users, which parts of an evaluation cannot add up."""
    if read(config, "n_shards", integer(1)) > 1:
        require_sums(config, "n_shards")


def require_sums(config: Config, why: str) -> None:
    """Refuse what the processes of a run cannot put together.

    Those are metrics that are no means over users, candidates drawn at each time, and
    what clients note for themselves.

    Raises
    ------
    ConfigError
        That names one, and ``why`` parts of an evaluation are added up.
    """
    users = {name for name, found in config.parts.metrics if _of_lists(found)}
    for metric in config["metrics"]:
        if metric not in users and not _has_lengths(metric.lower()):
            refuse(config, "metrics", f"means over users with {why}, not {metric}")
    if config["eval_candidates"] != "fixed":
        refuse(config, "eval_candidates", f"fixed with {why}")
    if config["report_contraction"]:
        refuse(config, "report_contraction", f"False with {why}")


def _has_lengths(metric: str) -> bool:
    """Whether a metric of RecBole's is one of lists of a length, as NDCG@10."""
    return _of_lists(metrics_dict.get(metric))


def _of_lists(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, TopkMetric)


def check_item_embedding(config: Config, kind: type[ItemEmbedding]) -> None:
    """Check what items are made of, and that a warm-up leaves rounds to train in."""
    if kind.fitted and config["item_base"] == "random":
        refuse(
            config,
            "item_base",
            f"warmup or features for item_embedding={config['item_embedding']}, whose "
            "codes are found from these",
        )
    if config["item_base"] != "random" and not (config["use_base"] or kind.fitted):
        refuse(config, "item_base", "random without use_base, as nothing remains of it")
    config.make_item_embedding(1, config["embedding_size"])
    step = min(config["eval_step"], config["epochs"])  # as RecBole evaluates
    last = config["epochs"] if not step else config["epochs"] // step * step
    if config.warmup_rounds and config.warmup_rounds >= last:
        refuse(
            config,
            "warmup_rounds",
            f"less than the round of the last evaluation, {last}",
        )


def check_methods(config: Config) -> None:
    """Check that model, policy, aggregator and compressors go together."""
    _check_policy(config)
    for direction, (name, compressor_class) in config.compressors.items():
        key = f"{direction}_compressor"
        key = "compressor" if config[key] is None else key
        _check_table_values(config, "compressor", key, name, compressor_class)
    _check_table_values(config, "aggregation", "aggregation", *config.parts.aggregation)
    for name, found in config.parts.transforms:
        _check_table_values(config, "transform", "transforms", name, found)
    _check_grid(config)
    _check_attack(config)
    _check_effect(config)
    _check_staleness(config)
    for key, allowed in config.model_class.requires.items():
        if config[key] not in allowed:
            names = " or ".join(map(str, allowed))
            refuse(config, key, f"{names} with model={config.model}")


def _check_attack(config: Config) -> None:
    """Refuse what an attack cannot act on."""
    if config.parts.attack is None:
        return
    name, found = config.parts.attack
    if found.of_items and config["item_embedding"] != "full":
        allowed = f"full with attack={name}, which writes rows of items"
        refuse(config, "item_embedding", allowed)
    if found.colluding and config["n_shards"] != 1:
        refuse(config, "n_shards", f"1 with attack={name}, whose attackers collude")


def _check_effect(config: Config) -> None:
    """Refuse keys that say more of what there is not."""
    defaults = registry.read_properties(".", "overall")
    name, uplink = config.compressors["uplink"]
    even = defaults["uplink_share"]
    if uplink.follows_downlink and config["uplink_share"] != even:
        allowed = (
            f"{even} with {name}, whose uplinks are of the rows that downlinks name"
        )
        refuse(config, "uplink_share", allowed)
    for keys, needed, named in _ONLY_WITH:
        for key in keys if not config[needed] else ():
            if config[key] != defaults[key]:
                refuse(config, key, f"{defaults[key]} without {named}")


def _check_staleness(config: Config) -> None:
    """Refuse what goes by a table, or residuals, that others change while one works."""
    if not config["staleness_window"]:
        return
    name, compressor = config.compressors["uplink"]
    if not config.parts.replica[1].shared:
        refuse(config, "replica", "broadcast with staleness_window")
    for key in ("uplink_feedback", "use_base"):
        if config[key]:
            refuse(config, key, "False with staleness_window")
    if config["item_embedding"] != "full":
        refuse(config, "item_embedding", "full with staleness_window")
    if config.model_class.table_values != REAL:
        allowed = f"0 with model={config.model}, whose updates have no weights"
        refuse(config, "staleness_window", allowed)
    if config["over_selection"] == 1 and config["deadline"] is None:
        allowed = (
            "more than 1, or a deadline set, with staleness_window: nobody is late"
        )
        refuse(config, "over_selection", allowed)
    if compressor.needs_base:
        raise ConfigError(
            f"staleness_window must be 0 with {name} for the uplink, which needs to "
            "know the table that a client has trained from"
        )


def _check_policy(config: Config) -> None:
    """Refuse what needs a table that both ends know to a policy without one."""
    policy = config.parts.replica[1]
    if policy.on_grid:  # it sends no compressor's downlinks
        return
    name, compressor_class = config.compressors["downlink"]
    reason = f"{name} needs to know the receiver's table"
    tiers = config["bandwidth"] is not None and policy.shared
    if compressor_class.needs_base and not policy.cumulative:
        refuse(config, "replica", f"broadcast or personal: {reason}")
    if compressor_class.needs_base and tiers and not config["downlink_feedback"]:
        refuse(config, "downlink_feedback", f"True with bandwidth: {reason}")
    if config["downlink_feedback"] and not policy.cumulative:
        allowed = (
            f"False with replica={config['replica']}, where everybody lacks something "
            "else: replica=personal sends each client what it lacks"
        )
        refuse(config, "downlink_feedback", allowed)


def _check_grid(config: Config) -> None:
    """Refuse what says how downlinks are coded, where the replica policy does that."""
    if not config.parts.replica[1].on_grid:
        return
    by_policy = f"with replica={config['replica']}, which codes downlinks itself"
    if config["downlink_compressor"] is not None:
        refuse(config, "downlink_compressor", f"left out {by_policy}")
    if config["downlink_feedback"]:
        refuse(config, "downlink_feedback", f"False {by_policy}, nothing being lost")
    if config.model_class.table_values != REAL:
        allowed = f"another with model={config.model}, whose tables are no real numbers"
        refuse(config, "replica", allowed)


def _check_table_values(
    config: Config, kind: str, key: str, name: str, found: _Carrier
) -> None:
    """Refuse what is made for other tables than the model's."""
    values = config.model_class.table_values
    if _carries(found, values):
        return
    fit = [
        other
        for other, path in registry.shipped(kind).items()
        if _carries(registry.load_class(key, path, _CARRIERS[kind]), values)
    ]
    raise ConfigError(
        f"{key}={name!r} does not go with model={config.model!r}, whose tables hold "
        f"{values}; those that do: {', '.join(fit)}"
    )


def _carries(found: _Carrier, values: str) -> bool:
    return found.table_values is None or values in found.table_values
