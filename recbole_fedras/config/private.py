"""What a run must not do if its privacy is to be what its report says."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from recbole_fedras.compressor.base import Compressor
from recbole_fedras.config import registry
from recbole_fedras.config.values import refuse
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.privacy import LocalDP
from recbole_fedras.federation.server.private import DPFedAvg
from recbole_fedras.federation.transforms import Transform

if TYPE_CHECKING:
    from recbole_fedras.config.config import Config


def privacy_of(config: Config) -> str | None:
    """Return where the noise of differential privacy is added: central, local."""
    if issubclass(config.parts.aggregation[1], DPFedAvg):
        return "central"
    found = [kind for _, kind in config.parts.transforms]
    return "local" if any(issubclass(kind, LocalDP) for kind in found) else None


def check_privacy(config: Config) -> None:
    """Refuse what would make a guarantee false.

    Raises
    ------
    ConfigError
        That names the key, why, and what it must be.
    """
    mode = privacy_of(config)
    if mode == "central":
        _check_central(config)
    elif mode == "local":
        _check_local(config)
    if mode and config["dp_noise_multiplier"] and find_spec("dp_accounting") is None:
        raise ConfigError(
            f"dp_noise_multiplier={config['dp_noise_multiplier']} needs the package "
            'dp-accounting: pip install "recbole-fedras[privacy]"'
        )


def _check_central(config: Config) -> None:
    name = config.parts.aggregation[0]
    if config["sampling"] != "poisson":
        allowed = f"poisson with aggregation={name}, whose guarantee rests on it"
        refuse(config, "sampling", allowed)
    if config["world"] is not None:
        refuse(
            config,
            "world",
            f"left out with aggregation={name}: who is late or lost"
            " is no random sample",
        )
    for other, found in config.parts.transforms:
        if (
            found.on_arrival is not Transform.on_arrival
            or found.on_aggregate is not Transform.on_aggregate
        ):
            raise ConfigError(
                f"transforms: {other} is not allowed with aggregation={name}; what it "
                "does at the server depends on clients' data, and no noise covers that"
            )


def _check_local(config: Config) -> None:
    if config["report_loss"]:
        allowed = "False with local_dp: the loss would be told without noise"
        refuse(config, "report_loss", allowed)


def check_secure_aggregation(config: Config) -> None:
    """Refuse what needs more of an update than a sum, or tells more.

    Raises
    ------
    ConfigError
        That names the key, why, and what it must be.
    """
    if not config["secure_aggregation"]:
        return
    if find_spec("cryptography") is None or find_spec("Crypto") is None:
        raise ConfigError(
            "secure_aggregation=True needs the packages cryptography and pycryptodome: "
            'pip install "recbole-fedras[privacy]"'
        )
    name, compressor = config.compressors["uplink"]
    if not compressor.linear:
        raise ConfigError(
            f"secure_aggregation=True is not allowed with the compressor {name}, whose "
            f"payloads do not add up; those that do: {', '.join(_linear())}: set "
            "uplink_compressor"
        )
    name, aggregator = config.parts.aggregation
    if not aggregator.additive:
        refuse(config, "aggregation", "inverse_frequency or fedavg" + _SUM_ALONE)
    for other, found in config.parts.transforms:
        if found.on_arrival is not Transform.on_arrival:
            raise ConfigError(f"transforms: {other} is not allowed{_SUM_ALONE}")
    for key, value in _WITH_SUMS.items():
        if config[key] != value:
            refuse(config, key, f"{value}{_SUM_ALONE}")
    if config["budget"] == "wire" and not compressor.lossless:
        refuse(config, "budget", "nominal: masked words take bytes of their own")


_SUM_ALONE = " with secure_aggregation=True, where the server sees sums alone"

#: Keys of what asks for more than a sum, and what they must be.
_WITH_SUMS = {
    "report_loss": False,
    "uplink_feedback": False,
    "bandwidth": None,
    "max_update_norm": 1e6,
    "world": None,
    "report_contraction": False,
    "compress_network": False,
}


def _linear() -> list[str]:
    return [
        name
        for name, path in registry.shipped("compressor").items()
        for found in [registry.load_class("compressor_class", path, Compressor)]
        if cast(type[Compressor], found).linear
    ]


def check_deployed(config: Config) -> None:
    """Refuse noise that shards, who know the seed, could take away, and masks.

    Raises
    ------
    ConfigError
    """
    if config["secure_aggregation"]:
        allowed = "False in a deployment: nodes cannot go on from the middle of a round"
        refuse(config, "secure_aggregation", allowed)
    mode = privacy_of(config)
    if mode and config["dp_noise_source"] != "os":
        allowed = "os in a deployment: everybody who takes part knows the seed"
        refuse(config, "dp_noise_source", allowed)
