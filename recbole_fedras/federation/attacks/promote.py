"""Attacks that push chosen items into everybody's recommendations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import CohortUpdate
from recbole_fedras.federation.attacks.base import Attack, Known
from recbole_fedras.federation.attacks.untargeted import require_strength


class Promote(Attack):
    """Pushes the rows of target items to where the attacker would score them highest.

    An attacker has a user vector of its own, as everybody has, and users' vectors have
    much in common: what is popular scores high with most of them. It sends nothing but
    targets: the step to a row of ``attack_strength`` times the length of the longest
    other, in the direction in which its own score rises fastest, the gradient of the
    model's score at the row it was sent. Of MF that is its own vector.

    Parameters
    ----------
    attack_target : str or list of str
        Tokens of the items.
    attack_strength : float
        Positive.
    """

    of_items = True

    def __init__(
        self, attack_target: str | Sequence[str], attack_strength: float = 10.0
    ) -> None:
        require_strength(attack_strength)
        single = isinstance(attack_target, str | int)
        targets = [attack_target] if single else attack_target
        self.targets = [str(target) for target in targets]  # YAML reads 50 as a number
        if not self.targets:
            raise ValueError("attack_target must name at least one item")
        self.strength = float(attack_strength)

    def on_updates(self, updates: CohortUpdate, known: Known) -> CohortUpdate:
        """Return changes of targets alone."""
        ids = self.target_ids
        others = np.setdiff1d(np.arange(known.tables.shape[1]), ids.numpy())
        longest = known.tables[:, others].norm(dim=2).amax(dim=1)[known.table_of]
        rows = known.tables[known.table_of][:, ids]  # (n, n_targets, width)
        directions = self._directions(rows, known)
        wanted = self.strength * longest[:, None, None] * directions
        n, n_targets = rows.shape[:2]
        return CohortUpdate(
            updates.clients,
            n_targets * torch.arange(n + 1),
            ids.repeat(n),
            (wanted - rows).flatten(0, 1),
            0 * updates.theta,
        )

    def _directions(self, rows: Tensor, known: Known) -> Tensor:
        """Return in which direction each attacker's score rises, of length 1.

        One attacker at a time: how a batch rounds would depend on who is in it.
        """
        network = {name: value[None] for name, value in known.theta.items()}
        slopes = []
        for user, own in zip(known.user_rows, rows, strict=True):
            leaf = own[None].detach().requires_grad_()
            with torch.enable_grad():
                total = known.score(user[None, None].detach(), leaf, network).sum()
            slopes.append(torch.autograd.grad(total, leaf)[0])
        of_all = torch.cat(slopes)
        unit: Tensor = of_all / of_all.norm(dim=2, keepdim=True).clamp(min=1e-12)
        return unit
