"""Descent with feedback on a convex problem, where its bound can be checked.

    python tests/descent.py

prints the table of docs/convergence.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from conftest import CTX, DIM, N_ITEMS, budget

from recbole_fedras.compressor import Compressor, RowUpdate
from recbole_fedras.compressor.measured import contraction
from recbole_fedras.experiments.tables import Table

RATE, STEPS = 0.05, 800


class LeastSquares:
    """``tr (W - W*)' H (W - W*) / 2`` over tables W, curvature from 1/4 to 1."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        vectors, _ = np.linalg.qr(rng.standard_normal((N_ITEMS, N_ITEMS)))
        values = np.linspace(0.25, 1, N_ITEMS)
        self.hessian = torch.from_numpy(vectors * values @ vectors.T)
        self.optimum = torch.from_numpy(rng.standard_normal((N_ITEMS, DIM)))

    def gradient(self, table: torch.Tensor) -> torch.Tensor:
        """Return that of a table."""
        return self.hessian @ (table - self.optimum)


class Descent(NamedTuple):
    """What came of it.

    Attributes
    ----------
    lost : list of float
        Contraction of each step.
    share_of_bound : float
        The largest of what was owed, in bounds for the contractions and gradients so
        far.
    distance : float
        From the optimum at the end, in distances at the begin.
    """

    lost: list[float]
    share_of_bound: float
    distance: float


def descend(compressor: Compressor, feedback: bool = True) -> Descent:
    """Take steps along gradients, each as it arrives, with what is owed or without."""
    problem = LeastSquares()
    table = torch.zeros(N_ITEMS, DIM, dtype=torch.float64)
    owed = torch.zeros_like(table)
    first = float((table - problem.optimum).norm())
    lost: list[float] = []
    steepest, share, ids = 0.0, 0.0, torch.arange(N_ITEMS)
    for step in range(STEPS):
        gradient = problem.gradient(table)
        steepest = max(steepest, float(gradient.norm()))
        due = RowUpdate(ids, (owed * feedback - RATE * gradient).float())
        ctx = replace(CTX, round=step)
        decoded = compressor.decode(compressor.encode(due, budget(0.75), ctx), ctx)
        lost.append(contraction(due, decoded))
        owed = due.rows.double()
        owed[decoded.ids] -= decoded.rows
        table[decoded.ids] += decoded.rows
        root = max(lost) ** 0.5
        bound = RATE * steepest * root / (1 - root) if root < 1 else np.inf
        share = max(share, float(owed.norm()) / (bound + 1e-6))
    return Descent(lost, share, float((table - problem.optimum).norm()) / first)


def main() -> None:
    """Print a line for each compressor."""
    from methods import NAMES, make

    rows = []
    for name in NAMES:
        if name in ("none", "CE", "RankOne"):
            continue
        owing, plain = descend(make(name)), descend(make(name), feedback=False)
        rows.append(
            {
                "method": name,
                "mean q": float(np.mean(owing.lost)),
                "largest q": max(owing.lost),
                "owed / bound": owing.share_of_bound,
                "distance": owing.distance,
                "without feedback": plain.distance,
            }
        )
    print(Table("", rows).shown("github"))


if __name__ == "__main__":
    main()
