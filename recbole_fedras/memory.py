"""Memory for tables of many clients: on disk behind the page cache, where needed."""

import tempfile

import numpy as np
import torch
from torch import Tensor


def mapped_zeros(*shape: int) -> Tensor:
    """Return float32 zeros of ``shape``, mapped to a temporary file.

    Only what is written takes space, first in memory and, where that is short, on the
    disk that holds the folder for temporary files (``TMPDIR``). The file has no name
    and vanishes with the tensor.
    """
    with tempfile.TemporaryFile(prefix="recbole-fedras-") as file:
        size = 4 * int(np.prod(shape))
        file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
