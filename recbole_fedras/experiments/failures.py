"""What is said of a method that has failed, while others go on."""

from __future__ import annotations

import traceback

from recbole_fedras.config import registry
from recbole_fedras.errors import TOLD


def reason_of(error: Exception) -> str:
    """Return what has gone wrong, in one line; of a bug the traceback is printed.

    Examples
    --------
    >>> from recbole_fedras.errors import BudgetError
    >>> reason_of(BudgetError("nothing is left"))
    'nothing is left'
    """
    if isinstance(error, TOLD):
        return str(error)
    traceback.print_exception(error)
    where = registry.plug_in_of(error)
    return f"{type(error).__name__}: {error}" + (f", in {where}" if where else "")
