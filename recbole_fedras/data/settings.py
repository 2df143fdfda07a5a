"""How interactions are read and split, as plain validated values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recbole_fedras.data.lines import Form


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How interactions are read and split.

    Attributes
    ----------
    user_field, item_field : str
    by_time : bool
        Whether a user's interactions are ordered by time.
    leave_out : str or None
        Which of a user's last interactions are held out, in RecBole's words; None for
        a split by shares.
    keep_short_users : bool
        Whether users with too few interactions for that stay.
    first_tie_is_latest : bool
        Which row of a user's equal times counts as the latest: the first, or the last.
    keep_overlap : bool
        Whether files that are the split may share pairs of user and item.
    form : Form
        How the files are written.
    filters : dict
        RecBole's keys that leave rows out, of those that are set.
    """

    user_field: str
    item_field: str
    by_time: bool
    leave_out: str | None
    keep_short_users: bool
    first_tie_is_latest: bool
    keep_overlap: bool
    form: Form
    filters: dict[str, Any]
