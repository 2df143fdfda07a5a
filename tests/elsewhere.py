"""A device that is not there: tensors that may not meet those of the CPU.

Within ``with Elsewhere():`` the device ``DEVICE`` can be asked for. Its tensors are
kept on the CPU, but an operation that takes some of each is an error, as on a GPU, and
so is ``numpy()``; ``to()`` and ``cpu()`` move. Single numbers may be anywhere.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

#: A type that torch knows, and has nothing for.
DEVICE = torch.device("privateuseone", 0)
_CPU = torch.device("cpu")
_INDEXING = {torch.Tensor.__setitem__, torch.Tensor.__getitem__}


def _is_there(value: object) -> bool:
    return isinstance(value, torch.Tensor) and hasattr(value, "is_there")


def _there(value: object) -> object:
    if isinstance(value, torch.Tensor):
        value.is_there = True  # type: ignore[attr-defined]
    return value


class Elsewhere(TorchFunctionMode):
    """Emulates the device; ``moved`` counts the tensors that were brought to it."""

    moved = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        foreign = any(map(_is_there, tensors))
        if foreign and func == torch.Tensor.device.__get__:
            return DEVICE
        if func is torch.Tensor.to and DEVICE in args:
            self.moved += 1
            return _there(args[0].clone())
        if func is torch.Tensor.cpu:
            return args[0].clone()
        if func is torch.Tensor.numpy and foreign:
            raise TypeError("a tensor of the device has no array")
        strays = any(one.dim() and not _is_there(one) for one in tensors)
        if foreign and strays and func not in _INDEXING:  # an index may be on the CPU
            raise RuntimeError(f"{func.__name__}: tensors of two devices")
        made = kwargs.get("device") == DEVICE
        if made:
            del kwargs["device"]
        result = func(*args, **kwargs)
        return tree_map(_there, result) if foreign or made else result
