"""The group of each row, as an index or, where that pays, by how large groups are."""

from __future__ import annotations

import numpy as np

from recbole_fedras.compressor.fedras.division import Floats, Ints
from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.bits import packed_size
from recbole_fedras.wire.payload import Layout, Payload
from recbole_fedras.wire.symbols import pack_symbols, unpack_symbols

# To code indices takes a tenth of a millisecond and more at both ends, and as a rule
# saves a tenth to a fifth of their bytes. So it is tried where they are at least an
# eighth of the actions' bytes: elsewhere it would save some 2 % of a message, or less.
_SHARE = 8
_BYTE = 256  # bound of an integer that is a byte


def put_assignments(
    payload: Payload,
    actions: Floats,
    assignments: Ints,
    value_bytes: int,
    coded: bool = True,
) -> tuple[Floats, Ints]:
    """Add the group of each row.

    **Wire**: ``assignments`` (n,) at ceil(log2 K) bits. Or, if that is smaller, groups
    are numbered by how many rows are in them, largest first; ``sizes`` is the set of
    numbers of rows that occur, as of rows of a table of n + 1; ``repeats`` how many
    groups have each, at ceil(log2(K + 1)) bits; and ``assignments`` what
    :func:`~recbole_fedras.wire.symbols.pack_symbols` makes of the indices.

    Parameters
    ----------
    payload : Payload
        To be added to.
    actions : ndarray of float32, shape (n_groups, dim)
        These are not added; their order may change.
    assignments : ndarray of int64, shape (n,)
    value_bytes : int
        Bytes of a value of an action, as it travels.
    coded : bool
        Whether they may be coded; else they are indices of whole bits.

    Returns
    -------
    actions, assignments : ndarray
        Numbered as the receiver will number them.

    Examples
    --------
    Nine of ten rows are in one of four groups: 0.3 bits each instead of two.

    >>> actions = np.arange(8, dtype=np.float32).reshape(4, 2)
    >>> assignments = np.where(np.arange(4000) % 10, 2, np.arange(4000) % 4)
    >>> payload = Payload()
    >>> sent = put_assignments(payload, actions, assignments, value_bytes=4)
    >>> payload.part_bytes()["ids"], packed_size(4000, 4)
    (151, 1000)
    >>> np.array_equal(get_assignments(payload, 4, 4000), sent[1])
    True
    """
    n, n_groups = len(assignments), len(actions)
    if coded and _SHARE * packed_size(n, n_groups) >= value_bytes * actions.size:
        sizes = np.bincount(assignments, minlength=n_groups)
        order = np.argsort(-sizes, kind="stable")
        numbers = np.empty_like(order)
        numbers[order] = np.arange(n_groups)
        numbered = numbers[assignments]
        code = pack_symbols([numbered.astype(np.int32)], sizes[None, order])
        occurring, repeats = np.unique(sizes, return_counts=True)
        layout = Layout().rows("sizes", len(occurring), n + 1)
        layout.ints("repeats", n_groups + 1, len(repeats))
        layout.ints("assignments", _BYTE, len(code))
        if layout.size < Layout().ints("assignments", n_groups, n).size:
            payload.put_rows("sizes", occurring, n + 1)
            payload.put_ints("repeats", repeats, n_groups + 1)
            payload.put_ints("assignments", code, _BYTE)
            return actions[order], numbered
    payload.put_ints("assignments", assignments, n_groups)
    return actions, assignments


def get_assignments(payload: Payload, n_groups: int, n: int) -> Ints:
    """Read the group of each row.

    Parameters
    ----------
    payload : Payload
    n_groups, n : int
        How many groups and rows there are, as other fields have told.

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    PayloadError
        If the payload does not have that form, or groups are not of the sizes that it
        announces.
    """
    if "sizes" not in payload:
        return payload.ints("assignments", n_groups, n)
    occurring = payload.rows("sizes", n + 1)
    repeats = payload.ints("repeats", n_groups + 1, len(occurring))
    if n_groups < 2 or repeats.sum() != n_groups or not n == occurring @ repeats > 0:
        raise PayloadError(f"field 'sizes': not of {n_groups} groups of {n} rows")
    sizes = np.repeat(occurring, repeats)[::-1]
    code = payload.raw("assignments")
    try:
        [symbols] = unpack_symbols(code, sizes[None], n)
    except ValueError as error:
        raise PayloadError(f"field 'assignments': {error}") from error
    if (np.bincount(symbols, minlength=n_groups) != sizes).any():
        raise PayloadError("field 'assignments': groups are not of the sizes announced")
    assignments: Ints = symbols.astype(np.int64)
    return assignments
