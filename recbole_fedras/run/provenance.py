"""Which code makes a run: versions, and the commit of a checkout."""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from recbole_fedras.version import __version__

#: Folder of our own source files.
PACKAGE = Path(__file__).parents[1]


@cache
def versions() -> dict[str, str]:
    """Return our version, Python's, and those of the packages that results hang on."""
    packages = ("recbole", "torch", "numpy", "scikit-learn", "numba")
    ours = {"recbole-fedras": __version__, "Python": platform.python_version()}
    return ours | {package: version(package) for package in packages}


@cache
def commit() -> str | None:
    """Name the commit of the checkout that the package is in, if it is in one.

    With ``-dirty`` behind it if its files differ.
    """
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
