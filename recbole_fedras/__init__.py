"""recbole-fedras: RecBole trains federatedly, with a compressor chosen by config."""

from recbole_fedras import compat

compat.apply()

__version__ = "0.1.0"
