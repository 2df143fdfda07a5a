"""The examples of docstrings: each runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import recbole_fedras

WITH_FLOWER = importlib.util.find_spec("flwr") is not None
MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(recbole_fedras.__path__, "recbole_fedras.")
    if WITH_FLOWER or not module.name.startswith("recbole_fedras.deploy.")
]
EXAMPLES = [
    found
    for module in MODULES
    for found in doctest.DocTestFinder().find(module)
    if found.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda found: found.name)
def test_examples_of_docstrings(example, workspace):
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert failed == 0
