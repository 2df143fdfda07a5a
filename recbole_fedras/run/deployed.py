"""A run on the server of a deployment: who takes part, then rounds as in any run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from recbole.utils import init_seed

from recbole_fedras.config import Config, compat, private, rules
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.data.catalogue import Catalogue, number_clients
from recbole_fedras.data.items import ItemData
from recbole_fedras.errors import ConfigError, DataError, PayloadError
from recbole_fedras.federation.deployment import (
    Deployment,
    Members,
    Terms,
    members_of,
    wait_for,
)
from recbole_fedras.federation.protocol import Ints, block_of
from recbole_fedras.model import FederatedRecommender
from recbole_fedras.run.setup import (
    in_warmup,
    log_of_its_own,
    require_effect,
    require_federated,
)
from recbole_fedras.run.sums import metric_names
from recbole_fedras.run.trainer import FederatedTrainer
from recbole_fedras.run.whole import begin, train_and_test
from recbole_fedras.version import __version__
from recbole_fedras.wire.frame import Step, pack, unpack
from recbole_fedras.wire.links import Links
from recbole_fedras.wire.payload import Payload

#: Users of all shards together, at most: arrays of as many are made.
MOST_CLIENTS = 2**24

#: What server and shards say to each other; it changes with its meaning.
PROTOCOL = 3

#: Keys that are each machine's own matter.
OF_EACH_MACHINE = {
    "data_path", "dataset", "use_gpu", "gpu_id", "n_jobs", "n_shards", "checkpoint_dir",
    "show_progress", "log_wandb", "wandb_project", "state", "catalogue", "device",
    "client_seed", "demands",
}  # fmt: skip

#: Keys of files of items' features, which only the server has.
OF_FEATURES = {
    "additional_feat_suffix", "alias_of_item_id", "load_col", "normalize_all",
    "normalize_field", "preload_weight",
}  # fmt: skip

Said = TypeVar("Said")


class _Numbers(NamedTuple):
    """What a model asks a dataset for, where nobody's interactions are."""

    user_num: int
    item_num: int
    user_field: str

    def num(self, field: str) -> int:
        """Return how many users or items there are, [PAD] included."""
        return self.user_num if field == self.user_field else self.item_num

    @property
    def features_are_elsewhere(self) -> bool:
        """Whether not to look for features: a checkpoint has what came of them."""
        return True


def deploy(config: Config, links: Links) -> dict[str, Any]:
    """Run a configuration over the shards that links reach.

    Parameters
    ----------
    config : Config
    links : Links
        To processes that each answer as a :class:`recbole_fedras.deploy.node.Desk`.

    Returns
    -------
    dict
        As :func:`recbole_fedras.run_recbole_fedras`.

    Raises
    ------
    ConfigError, DataError
        For what a deployment cannot do, and if shards refuse to take part.
    """
    require_federated(config)
    require_effect(config)
    _require_deployable(config)
    settings, deployed = config.run_settings(), config.deployment_settings()
    with config.in_use(), log_of_its_own(config):
        wait_for(links, deployed.min_shards)
        if settings.resume:
            state = read_checkpoint(settings.resume)["simulation"]["shard"]
            if not isinstance(state, dict) or "clients_of" not in state:
                raise DataError(f"resume={settings.resume!r} is of a simulation")
            members, n_items = members_of(state, time.time_ns()), state["n_items"]
            _take_over(links, members)
            catalogue = None
        else:
            members, catalogue = _set_up(config, links)
            n_items = len(catalogue)
        init_seed(settings.seed, settings.reproducibility)
        network = config.make_model(_items(config, n_items, catalogue))
        make = partial(_make, config, links, members, n_items)
        trainer = FederatedTrainer(config, network, make)
        folder = begin(trainer)
        return train_and_test(trainer, folder, (None, "valid", "test"))


def _require_deployable(config: Config) -> None:
    rules.require_sums(config, "a deployment")
    private.check_deployed(config)
    if config["client_seed"] is not None:
        raise ConfigError(
            "client_seed is not for a deployment's server to know: put it into a YAML "
            "file that a node is started with (--config_files), as a secret of its own"
        )
    if config.run_settings().checkpoint_step not in (None, 1):
        raise ConfigError(
            "checkpoint_step must be 1 in a deployment: shards do not go back"
        )
    if config.parts.world is not None:
        raise ConfigError(
            f"world={config['world']!r} is not allowed in a deployment; it must be "
            "left out: real clients have links of their own"
        )


def _items(config: Config, n_items: int, catalogue: Catalogue | None) -> Any:
    """Return what a model is made for: items, with their features where it needs them.

    Raises
    ------
    DataError
        If files of features are missing or unfit.
    """
    if catalogue is None or not config.needs_features:
        return _Numbers(1, 1 + n_items, config.evaluation_settings().user_field)
    name = config.run_settings().dataset
    with compat.errors_as(DataError, f"dataset={name!r}"):
        return ItemData(config, catalogue)


def _make(
    config: Config,
    links: Links,
    members: Members,
    n_items: int,
    model: FederatedRecommender,
    introduction: Payload | None = None,
    version: int = 0,
) -> Deployment:
    # Not the version that a run is resumed from: what everybody has started from.
    start = 0 if in_warmup(config, model) else config.warmup_rounds
    deployed = config.deployment_settings()
    return Deployment(
        links,
        members,
        Terms(deployed.deadline, deployed.min_shards, metric_names(config)),
        model,
        config.make_methods(),
        config.federation(),
        n_items,
        config.run_settings().n_jobs,
        introduction,
        start,
    )


def _set_up(config: Config, links: Links) -> tuple[Members, Catalogue]:
    """Tell shards of the run; agree on items, and on clients' numbers.

    Shards take their numbers in the order of their names.
    """
    run = uuid.uuid4().hex
    given = config.deployment_settings().catalogue
    elsewhere = OF_EACH_MACHINE | (OF_FEATURES if config.needs_features else set())
    keys = {key: v for key, v in config.resolved.items() if key not in elsewhere}
    about = {"protocol": PROTOCOL, "version": __version__, "run": run, "keys": keys}
    names = sorted(links.names())
    hello = dict.fromkeys(names, Step("hello", value=about))
    told = _asked(links, hello, _told)
    if given is None:
        tokens = [items for _, items in told.values()]
        catalogue = Catalogue(sorted(set().union(*tokens)))
    else:
        catalogue = read_catalogue(given)
    block = block_of(config.federation().client_fraction)
    numbers = number_clients([told[name][0] for name in names], block)
    n_clients = int(numbers[-1][-1]) + 1
    if n_clients > MOST_CLIENTS:
        raise ConfigError(f"{n_clients} users, of at most {MOST_CLIENTS}")
    agreed = {"run": run, "n_clients": n_clients, "catalogue": catalogue.to_bytes()}
    steps = {
        name: Step("begin", value=agreed | {"first": int(own[0])})
        for name, own in zip(names, numbers, strict=True)
    }
    begun = _asked(links, steps, _begun)
    clients_of = dict(zip(names, numbers, strict=True))
    eligible = [
        clients[_chosen(begun[name][0], len(clients))]
        for name, clients in clients_of.items()
    ]
    for name in names:
        getLogger().info(
            f"shard {name}: {len(clients_of[name])} users; "
            f"{begun[name][1]} interactions with unknown items dropped"
        )
    everybody = np.concatenate(eligible)
    members = Members(run, clients_of, everybody, n_clients, time.time_ns())
    return members, catalogue


def _take_over(links: Links, members: Members) -> None:
    """Let shards obey this server from now on.

    A server writes its checkpoint before shards learn that a round has counted. So what
    is read of it after this is as new as they are.
    """
    term = Step("run", value=[members.run, members.term, None])
    known = [name for name in links.names() if name in members.clients_of]
    for _ in links.ask({name: pack([term]) for name in known}):
        pass


def _asked(
    links: Links, steps: dict[str, Step], read: Callable[[Any], Said]
) -> dict[str, Said]:
    """Ask shards; return what they say.

    Raises
    ------
    ConfigError
        That says which shard does not take part, and why.
    """
    answers = links.ask({name: pack([step]) for name, step in steps.items()})
    said = {}
    for name, data in answers:
        try:
            (step,) = unpack(data)
            if step.what == "failed":
                raise PayloadError(f"{step.value[1]}")
            said[name] = read(step.value)
        except (PayloadError, ValueError, TypeError, LookupError) as error:
            raise ConfigError(
                f"shard {name} does not take part: {error!s:.999}"
            ) from error
    for name in steps:
        if name not in said:
            raise ConfigError(f"shard {name} has not answered; start it again")
    return said


def _told(value: Any) -> tuple[int, list[str]]:
    """Read the answer to ``hello``: how many users, and which items."""
    n_users, items = value["n_users"], value["items"]
    if not (type(n_users) is int and 0 < n_users <= MOST_CLIENTS):
        raise PayloadError(f"n_users={n_users!r:.99} of at most {MOST_CLIENTS}")
    if not (type(items) is list and all(type(item) is str for item in items)):
        raise PayloadError("its items are no list of tokens")
    Catalogue(items)  # each once
    return n_users, items


def _begun(value: Any) -> tuple[bytes, int]:
    """Read the answer to ``begin``: bits of clients, and interactions left out."""
    eligible, n_dropped = value["eligible"], value["n_dropped"]
    if type(eligible) is not bytes or type(n_dropped) is not int:
        raise PayloadError("it does not say who has something to train on")
    return eligible, n_dropped


def _chosen(packed: bytes, count: int) -> Ints:
    """Return places of bits that are set; those that are missing are not."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=count)
    return np.flatnonzero(bits)


def read_catalogue(path: str) -> Catalogue:
    """Read item tokens, one a line.

    Raises
    ------
    DataError
        If there is no such file, or it is no list of distinct tokens.
    """
    if not Path(path).is_file():
        raise DataError(f"catalogue={path!r}: there is no such file")
    try:
        return Catalogue.from_bytes(Path(path).read_bytes().rstrip(b"\n"))
    except DataError as error:
        raise DataError(f"catalogue={path!r}: {error}") from error
