"""Memory for tables of many clients: on disk behind the page cache, where needed."""

import shutil
import tempfile

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.errors import ConfigError


def mapped_zeros(*shape: int) -> Tensor:
    """Return float32 zeros of ``shape``, mapped to a temporary file.

    Only what is written takes space, first in memory and, where that is short, on the
    disk that holds the folder for temporary files (``TMPDIR``). The file has no name
    and vanishes with the tensor.

    Raises
    ------
    ConfigError
        If that disk could not hold all of it: to run out later would end the process.
    """
    folder, size = tempfile.gettempdir(), 4 * int(np.prod(shape, dtype=np.int64))
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ConfigError(
            f"tables of clients may grow to {size / 1e9:.2f} GB, but {folder} has "
            f"{free / 1e9:.2f} GB left: let TMPDIR name a folder on a larger disk"
        )
    with tempfile.TemporaryFile(prefix="recbole-fedras-") as file:
        file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))


def leading(tensor: Tensor, count: int) -> Tensor:
    """Return the first entries as a tensor that owns no more than these.

    They share memory; but ``torch.save`` writes all that a tensor is a view of.
    """
    if tensor.device.type != "cpu":
        return tensor[:count].clone()
    return torch.from_numpy(tensor.detach().numpy()[:count])
