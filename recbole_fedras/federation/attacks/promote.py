"""Attacks that push chosen items into everybody's recommendations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recbole_fedras.compressor.base import CohortUpdate, RowUpdate
from recbole_fedras.federation.attacks.base import Attack, Known
from recbole_fedras.federation.attacks.untargeted import (
    require_count,
    require_strength,
)


class Promote(Attack):
    """Pushes the rows of target items to where the attacker would score them highest.

    An attacker has a user vector of its own, as everybody has, and users' vectors have
    much in common: what is popular scores high with most of them. The step to a target
    is ``attack_strength`` times the length of the longest other row, in the direction
    in which its own score rises fastest, the gradient of the model's score at the row
    it was sent. Of MF that is its own vector.

    With ``attack_popular`` targets are given the look of popular items instead: the
    direction whose mean cosine with so many of them is the largest. Nobody tells a
    client what is popular; it takes the items that score highest with itself.

    Sources: PipAttack (Zhang et al., WSDM 2022, of which we read the abstract) gives
    targets the characteristics of popular items. PIECK-IPE (Zhang et al., "Preventing
    the Popular Item Embedding Based Attack in Federated Recommendations", ICDE 2024;
    abstract and published code) finds popular items by itself, as those whose rows
    change most from one round to the next, and raises the weighted mean cosine with
    them by its gradient.
    **Departures**: here it is negatives, four a positive, that change rows most, so the
    longest rows are those of the least popular items, and popular is what scores high.
    Cosines have equal weights, and the step goes straight to where their mean is
    largest.

    Parameters
    ----------
    attack_target : str or list of str
        Tokens of the items.
    attack_strength : float
        Positive.
    attack_popular : int or None
        How many items are taken for popular; None: targets need not look like any.
    attack_covert : bool
        Whether it sends what it has trained beside the targets, which hides it from
        those that compare whole clients; else targets alone.
    """

    of_items = True

    def __init__(
        self,
        attack_target: str | Sequence[str],
        attack_strength: float = 10.0,
        attack_popular: int | None = None,
        attack_covert: bool = False,
    ) -> None:
        require_strength(attack_strength)
        require_count("attack_popular", attack_popular)
        if type(attack_covert) is not bool:
            raise ValueError(f"attack_covert={attack_covert!r} must be True or False")
        single = isinstance(attack_target, str | int)
        targets = [attack_target] if single else attack_target
        self.targets = [str(target) for target in targets]  # YAML reads 50 as a number
        if not self.targets:
            raise ValueError("attack_target must name at least one item")
        self.strength = float(attack_strength)
        self.n_popular, self.covert = attack_popular, attack_covert

    def on_updates(self, updates: CohortUpdate, known: Known) -> CohortUpdate:
        """Return changes of targets, alone or beside what was trained."""
        ids = self.target_ids
        is_target = torch.isin(torch.arange(known.tables.shape[1]), ids)
        others = torch.nonzero(~is_target)[:, 0]
        longest = known.tables[:, others].norm(dim=2).amax(dim=1)[known.table_of]
        rows = known.tables[known.table_of][:, ids]  # (n, n_targets, width)
        look = self._own_taste if self.n_popular is None else self._popular_look
        wanted = self.strength * longest[:, None, None] * look(rows, known, others)
        sent = [RowUpdate(ids, pushed) for pushed in wanted - rows]
        if not self.covert:
            return CohortUpdate.of(updates.clients, sent, 0 * updates.theta)
        sent = [_beside(updates[index], pushed) for index, pushed in enumerate(sent)]
        return CohortUpdate.of(updates.clients, sent, updates.theta)

    def _own_taste(self, rows: Tensor, known: Known, others: Tensor) -> Tensor:
        """Return in which direction each attacker's score rises, of length 1.

        One attacker at a time: how a batch rounds would depend on who is in it.
        """
        slopes = []
        for place, own in enumerate(rows):
            leaf = own.detach().requires_grad_()
            with torch.enable_grad():
                total = known.scores(place, leaf).sum()
            slopes.append(torch.autograd.grad(total, leaf)[0])
        return _unit(torch.stack(slopes))

    def _popular_look(self, rows: Tensor, known: Known, others: Tensor) -> Tensor:
        """Return the direction with the largest mean cosine with popular items."""
        n_popular = min(self.n_popular or 1, len(others))
        looks = []
        for place, table in enumerate(known.table_of):
            items = known.tables[table][others]
            popular = items[known.scores(place, items).topk(n_popular).indices]
            looks.append(_unit(popular).sum(dim=0))
        return _unit(torch.stack(looks))[:, None].expand_as(rows)


def _unit(rows: Tensor) -> Tensor:
    """Scale rows to length 1; zeros stay."""
    unit: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return unit


def _beside(own: RowUpdate, pushed: RowUpdate) -> RowUpdate:
    """Put changed targets in place of, and beside, what was trained."""
    kept = ~torch.isin(own.ids, pushed.ids)
    ids, order = torch.cat([own.ids[kept], pushed.ids]).sort()
    return RowUpdate(ids, torch.cat([own.rows[kept], pushed.rows])[order])
