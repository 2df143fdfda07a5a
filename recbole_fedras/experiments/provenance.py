"""What made a run: code, commit and versions; and which runs other code made."""

from __future__ import annotations

import inspect
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recbole_fedras.config.registry import properties_folder
from recbole_fedras.data.digest import digest_of_files
from recbole_fedras.experiments.identity import PACKAGE, Measure, Outcome
from recbole_fedras.version import __version__


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
    packages = ("recbole", "torch", "numpy", "scikit-learn", "numba")
    versions = {"recbole-fedras": __version__, "Python": platform.python_version()}
    return {
        "code": digest_of_files(sorted(files, key=lambda path: path.parts[-2:])),
        "commit": _commit(),
        "versions": versions | {package: version(package) for package in packages},
    }


def _matters(path: Path) -> bool:
    around = ("commands", "experiments", "experiment")
    return path.parent.name not in around and path.name != "__main__.py"


def _commit() -> str | None:
    """Name the commit of the checkout that the package is in, if it is in one."""
    git = shutil.which("git")
    if git is None:
        return None
    tracked = [git, "-C", str(PACKAGE), "ls-files", "--error-unmatch", "version.py"]
    if subprocess.run(tracked, capture_output=True, check=False).returncode:  # noqa: S603
        return None  # installed, maybe within another project's checkout
    describe = ["describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    command = [git, "-C", str(PACKAGE), *describe]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.strip() or None


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
