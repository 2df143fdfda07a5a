"""Compiled code rounds alike whether it was just compiled or comes from the cache."""

from __future__ import annotations

import importlib

from conftest import modules
from numba.core.dispatcher import Dispatcher


def test_code_whose_sums_may_be_reordered_exists_once():
    """Else a fresh process calls the function's own code, a later one its caller's.

    LLVM may order sums otherwise in a copy that lies within a caller, and numba's
    cache holds the caller with the copy.
    """
    found = [importlib.import_module(n) for n in modules() if "__main__" not in n]
    options = {
        name: value.targetoptions
        for module in found
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }
    reordered = {name for name, own in options.items() if own.get("fastmath")}
    inlined = {name for name, own in options.items() if own.get("forceinline")}
    assert "_train" in reordered
    assert "exchange" in reordered
    assert reordered <= inlined
