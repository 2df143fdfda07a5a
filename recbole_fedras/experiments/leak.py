"""What compressed messages give away: attackers listen while a run trains."""

from __future__ import annotations

from recbole_fedras.config import Config, registry
from recbole_fedras.config.methods import names_in
from recbole_fedras.config.values import refuse
from recbole_fedras.experiments.identity import Keys, Outcome
from recbole_fedras.experiments.inference.base import Attacker
from recbole_fedras.experiments.outcome import kept, used_of
from recbole_fedras.experiments.wiretap import Wiretap
from recbole_fedras.run.setup import log_of_its_own
from recbole_fedras.run.whole import run


def leak(cell: Keys) -> Outcome:
    """Train and test, while every attacker listens to :data:`WATCHED` clients.

    Returns
    -------
    dict
        As of training and testing; ``test_result`` also holds ``AUC {attacker}`` and
        ``precision {attacker}`` of each (:class:`Found`), and as ``AUC`` and
        ``precision`` the highest.
    """
    config = Config(config_dict=used_of(cell))
    if config["item_embedding"] != "full":
        refuse(config, "item_embedding", "full, for rows that are items' own")
    if config["use_base"]:
        refuse(config, "use_base", "False, for rows that are items' whole vectors")
    if config["secure_aggregation"]:
        refuse(config, "secure_aggregation", "False: the server sees no update alone")
    wiretap = Wiretap(attackers(config))
    with config.in_use(), log_of_its_own(config):
        outcome = kept(run(config, kind=wiretap))
    found = wiretap.found()
    if not found:
        refuse(config, "epochs", "more: no client that is watched has taken part")
    measured = {
        "AUC": max(one.auc for one in found.values()),
        "precision": max(one.precision for one in found.values()),
    }
    for name, (auc, precision) in found.items():
        measured |= {f"AUC {name}": auc, f"precision {name}": precision}
    outcome["result"]["test_result"] |= measured
    return outcome


def attackers(config: Config) -> dict[str, Attacker]:
    """Make the attackers that ship, and those of ``attacker_class``."""
    own = names_in(config.resolved, "attacker_class")
    paths = registry.shipped("attacker")
    paths |= {path.rpartition(".")[2]: path for path in own}
    with config.in_use():
        return {
            name: registry.load_class("attacker_class", path, Attacker)()
            for name, path in paths.items()
        }
