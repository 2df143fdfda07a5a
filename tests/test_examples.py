"""The examples of docstrings: each runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import recbole_fedras

MODULES = pkgutil.walk_packages(recbole_fedras.__path__, "recbole_fedras.")
EXAMPLES = [
    found
    for module in MODULES
    for found in doctest.DocTestFinder().find(importlib.import_module(module.name))
    if found.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda found: found.name)
def test_examples_of_docstrings(example, workspace):
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert failed == 0
