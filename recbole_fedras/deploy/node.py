"""A node: it reads its users' files, takes part in runs, and answers requests."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch

from recbole_fedras.config import Config
from recbole_fedras.config.methods import names_in
from recbole_fedras.config.private import check_deployed
from recbole_fedras.config.recbole_keys import of_data
from recbole_fedras.data.catalogue import Catalogue
from recbole_fedras.data.digest import digest_of_dataset
from recbole_fedras.data.renumber import renumber
from recbole_fedras.deploy.journal import Journal
from recbole_fedras.embedding.base import take_introduction
from recbole_fedras.errors import ConfigError, DataError, PayloadError
from recbole_fedras.federation.client.node import Node
from recbole_fedras.federation.client.shard import Shard
from recbole_fedras.federation.network import get_theta
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.numeric.theta import flatten, unflatten
from recbole_fedras.run.deployed import MOST_CLIENTS, OF_EACH_MACHINE, PROTOCOL
from recbole_fedras.run.setup import load_data
from recbole_fedras.run.shards import Loaded
from recbole_fedras.version import __version__
from recbole_fedras.wire.frame import Step, pack, unpack
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.payload import Payload

#: Steps that change what the shard holds.
_CHANGES = {"begin", "participate", "refresh", "settle"}

#: Runs whose folders stay when another begins, so that they can be resumed.
_EARLIER_RUNS = 2

#: Keys that name files to read or write, besides those of each machine.
_FILES = {
    "config_files", "dataloaders_save_path", "dataset_save_path", "resume",
    "save_dataloaders", "save_dataset", "world", "world_trace",
}  # fmt: skip


def make_handle(
    data_path: Path, dataset: str, folder: Path, config_files: Sequence[str] = ()
) -> Callable[[bytes], bytes]:
    """Return what answers for a node.

    Parameters
    ----------
    data_path : Path
        Folder of the dataset's folder.
    dataset : str
    folder : Path
        For what the node keeps, readable by its owner alone.
    config_files : sequence of str
        Of the node's own.
    """
    os.umask(0o077)
    own = Config(
        config_file_list=config_files,
        config_dict={"data_path": str(data_path), "dataset": dataset},
    )
    desk = Desk(own, folder / "runs")

    def handle(request: bytes) -> bytes:
        with torch.no_grad(), threads(-1):
            return desk.handle(request)

    return handle


class Desk:
    """Answers what belongs to no run yet, and has the run that is asked for answer.

    Parameters
    ----------
    own : Config
        Of the node's own: where its data are, and which of them count. Classes that a
        run names are imported from what is installed, the working folder, and the
        folders of its config files.
    folder : Path
        Of runs' folders.
    """

    def __init__(self, own: Config, folder: Path) -> None:
        self._config_of_node, self._folder = own, folder
        self._of_data = of_data(own.resolved)
        self._own = {key: own.resolved[key] for key in ("data_path", "dataset")}
        self._node: DeployedNode | None = None

    def handle(self, request: bytes) -> bytes:
        """Answer a request; an error is told, and costs nothing but the answer."""
        with self._config_of_node.in_use():
            return self._handle(request)

    def _handle(self, request: bytes) -> bytes:
        try:
            first = unpack(request)[0]
            if first.what == "hello":
                return pack([Step("hello", value=self._hello(first.value))])
            if first.what == "begin":
                return pack([Step("begin", value=self._begin(first.value))])
            return self._of_run(first).handle(request)
        except Exception as error:
            trace = traceback.format_exc()
            print(trace, flush=True)
            failed = [type(error).__name__, str(error), trace[-2000:]]
            return pack([Step("failed", value=failed)])

    def _hello(self, about: dict[str, Any]) -> dict[str, Any]:
        """Say how many users there are, and which items they know."""
        if about["protocol"] != PROTOCOL:
            raise ConfigError(
                f"the server's recbole-fedras {about['version']} speaks protocol "
                f"{about['protocol']}, this node's {__version__} speaks {PROTOCOL}; "
                "install the same version on both"
            )
        keys = self._checked(about["keys"])
        keys["client_seed"] = self._config_of_node["client_seed"]
        config = self._config(keys)
        check_deployed(config)
        dataset = load_data(config)
        begun = {"keys": keys, "data": self._data_digest()}
        folder = self._folder_of(about["run"])
        Journal(folder).write_once("keys", msgpack.packb(begun))
        items = dataset.field2id_token[dataset.iid_field][1:]
        return {"n_users": dataset.user_num - 1, "items": [str(item) for item in items]}

    def _begin(self, agreed: dict[str, Any]) -> dict[str, Any]:
        """Take numbers and catalogue; say which clients have something to train on."""
        folder = self._folder_of(agreed["run"])
        self._node = self._restored(folder, agreed)
        Journal(folder).write_once("numbers", msgpack.packb(agreed))
        self._forget_all_but(folder)
        counts = np.diff(self._node.loaded.data.offsets)[self._node.shard.clients]
        eligible = np.packbits(counts > 0).tobytes()
        return {"eligible": eligible, "n_dropped": self._node.n_dropped}

    def _forget_all_but(self, begun: Path) -> None:
        """Leave what is kept of a run that begins, and of those used last before."""
        found = [folder for folder in self._folder.iterdir() if folder.is_dir()]
        others = [folder for folder in found if folder != begun]
        others.sort(key=_last_use, reverse=True)
        for folder in others[_EARLIER_RUNS:]:
            shutil.rmtree(folder, ignore_errors=True)  # the next run tries again

    def _of_run(self, first: Step) -> DeployedNode:
        if first.what != "run":
            raise PayloadError(f"a request must say its run, not begin by {first.what}")
        run, term, _ = first.value
        if self._node is None or self._node.run != run or not self._node.is_whole:
            self._node = None  # whatever fails below
            folder = self._folder_of(run)
            if not (folder / "numbers").is_file():
                raise PayloadError(f"this node takes no part in run {run}")
            agreed = msgpack.unpackb(Journal(folder).read("numbers"))
            self._node = self._restored(folder, agreed)
        self._node.obey(term)
        return self._node

    def _checked(self, keys: dict[str, Any]) -> dict[str, Any]:
        """Refuse keys that are a node's own matter: files, columns, which rows count.

        Raises
        ------
        ConfigError
            That names one.
        """
        for key, value in keys.items():
            if key in self._of_data:
                if value != self._of_data[key]:
                    raise ConfigError(
                        f"{key}={value!r} is not what this node reads its data by, "
                        f"{self._of_data[key]!r}: put it into a YAML file that the "
                        "node is started with (--config_files), if its owner agrees"
                    )
            elif key in OF_EACH_MACHINE or (key in _FILES and value):
                raise ConfigError(f"{key}={value!r} is not for a server to say")
        self._require_demanded(keys)
        return dict(keys)

    def _require_demanded(self, keys: dict[str, Any]) -> None:
        """Refuse a run that is not as this node's owner wants it.

        Attackers are bound by no transform, so nobody here is to be one unless that is
        demanded too.

        Raises
        ------
        ConfigError
            That names a key.
        """
        demands = self._config_of_node.deployment_settings().demands
        if demands is None:
            return
        for key, wanted in ({"attack": None} | demands).items():
            found = keys.get(key)
            met = found == wanted
            if key == "transforms":
                met = set(names_in(demands, key)) <= set(names_in(keys, key))
            if not met:
                raise ConfigError(
                    f"{key}={found!r} is not what this node demands, {wanted!r}"
                )

    def _data_digest(self) -> str | None:
        name = self._own["dataset"]
        return digest_of_dataset(str(Path(self._own["data_path"]) / name), name)

    def _folder_of(self, run: Any) -> Path:
        if not isinstance(run, str) or not run.isalnum():
            raise PayloadError(f"{run!r:.99} is no name of a run")
        return self._folder / run

    def _config(self, keys: dict[str, Any]) -> Config:
        return Config(config_dict=keys | self._of_data | self._own)

    def _restored(self, folder: Path, agreed: dict[str, Any]) -> DeployedNode:
        """Set a run up as it was agreed, and bring it to where it was.

        Raises
        ------
        DataError
            If the data are not those that the run began with.
        """
        begun = msgpack.unpackb(Journal(folder).read("keys"))
        if begun["data"] != self._data_digest():
            raise DataError(
                f"dataset={self._own['dataset']!r} at data_path="
                f"{self._own['data_path']!r} is not what this run began with; put the "
                "files back, or start a new run"
            )
        config = self._config(begun["keys"])
        dataset = load_data(config)
        first, n_users = agreed["first"], dataset.user_num - 1
        if not 0 <= first <= first + n_users <= agreed["n_clients"] <= MOST_CLIENTS:
            raise PayloadError(f"numbers of {n_users} users cannot begin at {first}")
        n_dropped = renumber(
            dataset,
            Catalogue.from_bytes(agreed["catalogue"]),
            first,
            agreed["n_clients"],
            config.deployment_settings().drop_unknown_items,
        )
        clients = np.arange(first, first + n_users)
        with config.in_use():
            loaded = Loaded(config, dataset, clients)
            shard = loaded.begin(0, loaded.model.embedding is not None)
        node = DeployedNode(agreed["run"], shard, loaded, Journal(folder))
        node.n_dropped = n_dropped
        node.restore()
        return node


def _last_use(folder: Path) -> int:
    """Return when anything of a run was written last, in nanoseconds."""
    return max(path.stat().st_mtime_ns for path in [folder, *folder.iterdir()])


class DeployedNode(Node):
    """A node of one run, which keeps on disk what its clients hold.

    Parameters
    ----------
    run : str
    shard : Shard
    loaded : Loaded
    journal : Journal
    """

    n_dropped = 0

    def __init__(
        self, run: str, shard: Shard, loaded: Loaded, journal: Journal
    ) -> None:
        super().__init__(shard, self._sums)
        self.run, self.loaded, self._journal = run, loaded, journal
        self._round = 0
        self._begun: dict[str, Any] | None = None

    def restore(self) -> None:
        """Do again what has been done before this process began."""
        self._journal.replay(self._load, self._do_again)

    def _state(self) -> dict[str, Any]:
        return {"begun": self._begun, "shard": self.shard.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        if state["begun"] is not None:
            self._begin(state["begun"])
        self.shard.load_state_dict(state["shard"])

    def _begin(self, begun: dict[str, Any]) -> None:
        """Let items be an embedding that the server has fitted; users stay."""
        if begun == self._begun:
            return
        before, model = self.shard, self.loaded.model
        model.begin_or_not(True)
        network = model.theta()
        theta = get_theta(Payload.from_bytes(begun["theta"]), len(flatten(network)))
        for name, value in unflatten(theta, network).items():
            network[name].copy_(value)
        self.shard = self.loaded.begin(begun["version"], embedding=True)
        self.shard.user_rows.copy_(before.user_rows)
        self.shard.user_states = before.user_states
        if self.shard.embedding is not None:
            once = Payload.from_bytes(begun["once"])
            take_introduction(self.shard.embedding, once)
        self._begun = begun

    def _do_again(self, request: bytes) -> None:
        steps = unpack(request)
        again = (step for step in steps if step.what in {"run", *_CHANGES})
        for _ in self.perform(again):
            pass

    def handle(self, request: bytes) -> bytes:
        """Answer, once what is changed is on disk."""
        if self._journal.is_long:
            self._journal.begin_anew(self._state())
        return super().handle(request)

    def _done(self, request: bytes, steps: list[Step]) -> None:
        if _CHANGES.intersection(step.what for step in steps):
            self._journal.append(request)

    def _do(self, what: str, messages: list[Message], value: Any) -> Iterator[Step]:
        if what == "run":
            self._require_now(*value)
        elif what == "begin":
            self._begin(value)
        elif what == "keep_best":
            self._journal.keep_best(value, self.shard.state_dict())
            yield Step("keep_best")
        elif what == "evaluate_best":
            yield Step("evaluate_best", value=self._sums_of_best(*value))
        else:
            yield from super()._do(what, messages, value)

    def obey(self, term: int) -> None:
        """Take orders from the newest server of the run.

        Raises
        ------
        PayloadError
            If another has taken its place.
        """
        newest = self._journal.term
        if term < newest:
            raise PayloadError("another server has taken this run over")
        if term > newest:
            self._journal.term = term

    def _require_now(self, run: str, term: int, round: int | None) -> None:
        """Refuse what is of an earlier round, come late or from a server gone back.

        Raises
        ------
        PayloadError
            That names both rounds.
        """
        if run != self.run:
            raise PayloadError(f"run {run!r} is not {self.run}")
        if round is not None and round < self._round:
            raise PayloadError(
                f"round {round} is over: this node has come to round {self._round}; "
                "resume the run from its newest checkpoint, last.pth"
            )
        self._round = self._round if round is None else round

    def _sums(self, phase: str) -> dict[str, Any]:
        """Evaluate; nobody's rank leaves the node."""
        found = self.loaded.evaluate(phase)
        return {"n_users": found["n_users"], "sums": found["sums"]}

    def _sums_of_best(self, phase: str, round: int) -> dict[str, Any]:
        best = self._journal.best(round)
        newest = _copied(self.shard.state_dict())
        self.shard.load_state_dict(best)
        try:
            return self._sums(phase)
        finally:
            self.shard.load_state_dict(newest)


def _copied(state: Any) -> Any:
    """Copy a state, whose tensors are a shard's own."""
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return state.clone() if isinstance(state, torch.Tensor) else state
