"""The examples of docstrings: each runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib

import pytest
from conftest import modules

EXAMPLES = [
    found
    for name in modules()
    for found in doctest.DocTestFinder().find(importlib.import_module(name))
    if found.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda found: found.name)
def test_examples_of_docstrings(example, workspace):
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert failed == 0
