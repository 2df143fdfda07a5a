"""Compiled code rounds alike whether it was just compiled or comes from the cache."""

from __future__ import annotations

import importlib
import pkgutil

from numba.core.dispatcher import Dispatcher

import recbole_fedras


def test_code_whose_sums_may_be_reordered_exists_once():
    """Else a fresh process calls the function's own code, a later one its caller's.

    LLVM may order sums otherwise in a copy that lies within a caller, and numba's
    cache holds the caller with the copy.
    """
    names = pkgutil.walk_packages(recbole_fedras.__path__, "recbole_fedras.")
    modules = [importlib.import_module(name) for _, name, _ in names
               if not name.endswith("__main__") and ".deploy." not in name]  # fmt: skip
    options = {
        name: value.targetoptions
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }
    reordered = {name for name, own in options.items() if own.get("fastmath")}
    inlined = {name for name, own in options.items() if own.get("forceinline")}
    assert "_slopes" in reordered
    assert "_lloyd" in options
    assert reordered <= inlined
