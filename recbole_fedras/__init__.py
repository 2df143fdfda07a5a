"""recbole-fedras: RecBole trains federatedly, with a compressor chosen by config."""

from recbole_fedras.config import compat
from recbole_fedras.version import __version__

compat.apply()

__all__ = ["__version__"]
