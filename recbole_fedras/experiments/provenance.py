"""What made a run: code, commit and versions; and which runs other code made."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from recbole_fedras.config.registry import properties_folder
from recbole_fedras.data.digest import digest_of_files
from recbole_fedras.experiments.identity import Measure, Outcome
from recbole_fedras.run.provenance import PACKAGE, commit, versions


@cache
def made_by(measure: Measure) -> dict[str, Any]:
    """Say what makes runs here and now.

    Returns
    -------
    dict
        ``code``, a digest of what can change a run: our source files and defaults, but
        for the command line and what arranges many runs, and the file of ``measure``;
        ``commit``, if they are in a git checkout, with ``-dirty`` if its files differ;
        ``versions``.
    """
    properties = properties_folder()
    files = [
        *(path for path in PACKAGE.rglob("*.py") if _matters(path)),
        *(path for path in properties.rglob("*.yaml") if _matters(path)),
        Path(inspect.getsourcefile(measure) or ""),
    ]
    return {
        "code": digest_of_files(sorted(files, key=lambda path: path.parts[-2:])),
        "commit": commit(),
        "versions": versions(),
    }


def _matters(path: Path) -> bool:
    around = ("commands", "experiments", "experiment")
    return path.parent.name not in around and path.name != "__main__.py"


def is_other_code(outcome: Outcome, measure: Measure) -> bool:
    """Whether a run was made by code other than what is here."""
    return bool(outcome["made"].get("code") != made_by(measure)["code"])


def other_code(outcomes: Sequence[Outcome], measure: Measure) -> str:
    """Name what made those runs that this code did not; empty if there are none."""
    others = [run["made"] for run in outcomes if is_other_code(run, measure)]
    return ", ".join(sorted({_label(made) for made in others}))


def _label(made: dict[str, Any]) -> str:
    """Name code by its commit, or by that which it is older than, or its version."""
    if "added" in made:
        return f"before {made['added']}"
    return str(made["commit"] or f"version {made['versions']['recbole-fedras']}")


def note_of_other_code(outcomes: Sequence[Outcome], measure: Measure) -> str:
    """Say how many runs other code made; empty if none."""
    n_others = sum(is_other_code(outcome, measure) for outcome in outcomes)
    if not n_others:
        return ""
    return (
        f"{n_others} of {len(outcomes)} runs were made by other code, named in the "
        "last column; --redo runs them again."
    )
