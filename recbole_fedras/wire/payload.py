"""A payload: named fields exactly as they travel, and their bytes."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray

from recbole_fedras.errors import PayloadError as PayloadError
from recbole_fedras.wire import bits

#: The parts that every byte is booked under. ``items`` holds the float values of item
#: rows (what papers count), ``ids`` row ids, indices and assignments, ``theta`` the
#: scoring network, ``once`` what each client is sent once (bases, codes), ``framing``
#: names, shapes and lengths.
PARTS = ("items", "ids", "theta", "once", "framing")

FLOAT32 = np.dtype("<f4")

_BYTE_OF_PART = {part: bytes([index]) for index, part in enumerate(PARTS[:-1])}

# One for all payloads: to make a packer takes longer than to pack with it.
_PACKER = msgpack.Packer()


class _Field(NamedTuple):
    shape: tuple[int, ...]
    data: bytes
    part: str


class Payload:
    """Named fields, written once by the sender and checked when the receiver reads.

    **Wire**: a msgpack array of ``[name, shape, data, part]``, ``shape`` an array of
    integers, ``data`` the raw bytes: float32 little-endian in C order
    (:meth:`put_floats`), integers packed to the bits of their bound (:meth:`put_ints`)
    or a row set (:meth:`put_rows`), ``part`` the index of the part in :data:`PARTS`.

    Examples
    --------
    >>> payload = Payload().put_rows("rows", np.array([2, 5]), n_rows=100)
    >>> payload = payload.put_floats("values", np.ones((2, 4), np.float32))
    >>> received = Payload.from_bytes(payload.to_bytes())
    >>> received.rows("rows", 100), received.floats("values", 2, 4).shape
    (array([2, 5]), (2, 4))
    >>> received.part_bytes()
    {'items': 32, 'ids': 2, 'theta': 0, 'once': 0}
    """

    def __init__(self) -> None:
        self._fields: dict[str, _Field] = {}
        self._sizes = dict.fromkeys(PARTS[:-1], 0)

    def put_floats(
        self, name: str, values: NDArray[np.float32], part: str = "items"
    ) -> Payload:
        """Add a float32 array of any shape."""
        data = np.ascontiguousarray(values, FLOAT32).tobytes()
        return self._put(name, values.shape, data, part)

    def put_ints(
        self, name: str, values: bits.Ints | bits.Bytes, bound: int, part: str = "ids"
    ) -> Payload:
        """Add integers in ``[0, bound)``, a bound that the receiver knows.

        A method that sends values of items as integers books them under ``items``.
        """
        return self._put(name, values.shape, bits.pack(values.ravel(), bound), part)

    def put_rows(self, name: str, ids: bits.Ints, n_rows: int) -> Payload:
        """Add a set of row ids of a table of ``n_rows`` rows."""
        return self._put(name, ids.shape, bits.pack_rows(ids, n_rows), "ids")

    def floats(self, name: str, *shape: int | None) -> NDArray[np.float32]:
        """Read a float32 array whose shape must match ``shape`` (None: any length)."""
        field = self._get(name, shape)
        if len(field.data) != FLOAT32.itemsize * prod(field.shape):
            raise PayloadError(
                f"field {name!r}: {len(field.data)} bytes do not hold {field.shape}"
            )
        return np.frombuffer(field.data, FLOAT32).reshape(field.shape)

    def ints(self, name: str, bound: int, *shape: int | None) -> bits.Ints:
        """Read integers in ``[0, bound)`` of the given shape.

        If ``bound`` is 1 they take no bytes, so their shape must be known.
        """
        field = self._get(name, shape)
        if None in shape and bits.width(bound) == 0:
            raise PayloadError(f"field {name!r}: no bytes to hold {field.shape}")
        try:
            values = bits.unpack(field.data, prod(field.shape), bound)
        except ValueError as error:
            raise PayloadError(f"field {name!r}: {error}") from error
        return values.reshape(field.shape)

    def raw(self, name: str) -> bytes:
        """Read integers in ``[0, 256)``, a row of them, as the bytes that they are."""
        field = self._get(name, (None,))
        if len(field.data) != field.shape[0]:
            raise PayloadError(
                f"field {name!r}: {len(field.data)} bytes do not hold {field.shape}"
            )
        return field.data

    def rows(self, name: str, n_rows: int) -> bits.Ints:
        """Read a set of row ids of a table of ``n_rows`` rows."""
        field = self._get(name, (None,))
        try:
            return bits.unpack_rows(field.data, field.shape[0], n_rows)
        except ValueError as error:
            raise PayloadError(f"field {name!r}: {error}") from error

    def values(self) -> NDArray[np.float32]:
        """Return all floats that are booked as items, one field after the other."""
        fields = [field for field in self._fields.values() if field.part == "items"]
        return np.frombuffer(b"".join(field.data for field in fields), FLOAT32)

    def with_values(self, values: NDArray[np.float32]) -> Payload:
        """Return the payload with other floats in place of :meth:`values`."""
        data, start, payload = values.astype(FLOAT32).tobytes(), 0, Payload()
        for name, (shape, before, part) in self._fields.items():
            if part == "items":
                stop = start + len(before)
                before, start = data[start:stop], stop
            payload._put(name, shape, before, part)
        return payload

    def without(self, name: str) -> Payload:
        """Return the payload without a field, if it has that."""
        payload = Payload()
        for other, field in self._fields.items():
            if other != name:
                payload._put(other, *field)
        return payload

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __len__(self) -> int:
        return len(self._fields)

    def part_bytes(self) -> dict[str, int]:
        """Bytes of the field data by part, framing excluded."""
        return dict(self._sizes)

    @property
    def size(self) -> int:
        """Bytes of it serialised."""
        fields = self._fields.items()
        openings = (_opening(name, one.shape, len(one.data)) for name, one in fields)
        head = len(_PACKER.pack_array_header(len(fields)))
        data = sum(self._sizes.values()) + len(fields)  # a byte for each one's part
        return head + sum(map(len, openings)) + data

    def to_bytes(self) -> bytes:
        """Serialise."""
        pieces = [_PACKER.pack_array_header(len(self._fields))]
        for name, (shape, data, part) in self._fields.items():
            pieces += (_opening(name, shape, len(data)), data, _BYTE_OF_PART[part])
        return b"".join(pieces)

    @classmethod
    def from_bytes(cls, data: bytes) -> Payload:
        """Parse.

        Raises
        ------
        PayloadError
            If ``data`` is not what :meth:`to_bytes` writes.
        """
        return cls.of_entries(unpack(data))

    @classmethod
    def of_entries(cls, entries: Any) -> Payload:
        """Check what msgpack has unpacked.

        Raises
        ------
        PayloadError
            If these are not fields of a payload.
        """
        if not isinstance(entries, tuple):
            raise PayloadError(f"not a payload: {type(entries).__name__}")
        payload = cls()
        for entry in entries:
            if not _is_field(entry):
                raise PayloadError("not a payload: a malformed field")
            payload._put(entry[0], entry[1], entry[2], PARTS[entry[3]])
        return payload

    def _put(
        self, name: str, shape: tuple[int, ...], data: bytes, part: str
    ) -> Payload:
        if name in self._fields:
            raise PayloadError(f"field {name!r} stands twice")
        if part not in PARTS[:-1]:
            raise ValueError(f"field {name!r}: part={part!r} must be of {PARTS[:-1]}")
        self._fields[name] = _Field(tuple(shape), data, part)
        self._sizes[part] += len(data)
        return self

    def _get(self, name: str, shape: tuple[int | None, ...]) -> _Field:
        if name not in self._fields:
            raise PayloadError(f"no field {name!r}, only {list(self._fields)}")
        field = self._fields[name]
        if len(field.shape) != len(shape) or any(
            want is not None and want != got
            for want, got in zip(shape, field.shape, strict=True)
        ):
            raise PayloadError(f"field {name!r}: shape {field.shape}, not {shape}")
        return field


def _is_field(entry: Any) -> bool:
    return (
        isinstance(entry, tuple)
        and len(entry) == 4
        and isinstance(entry[0], str)
        and isinstance(entry[1], tuple)
        and all(type(size) is int and 0 <= size < 2**31 for size in entry[1])
        and isinstance(entry[2], bytes)
        and type(entry[3]) is int
        and 0 <= entry[3] < len(PARTS) - 1
    )


class Layout:
    """Bytes of a payload whose shapes are known and whose values are not.

    Each method mirrors the ``put_`` method of :class:`Payload` of that name;
    ``len(payload.to_bytes())`` is the :attr:`size` of its layout, exactly.

    Examples
    --------
    >>> payload = Payload().put_rows("rows", np.array([2, 5]), n_rows=100)
    >>> payload = payload.put_floats("values", np.ones((2, 4), np.float32))
    >>> layout = Layout().rows("rows", 2, n_rows=100).floats("values", 2, 4)
    >>> layout.size == len(payload.to_bytes())
    True
    """

    def __init__(self) -> None:
        self.size = 1  # the array's header, of up to 15 fields

    def floats(self, name: str, *shape: int) -> Layout:
        """Add a float32 array."""
        return self._add(name, shape, FLOAT32.itemsize * prod(shape))

    def ints(self, name: str, bound: int, *shape: int) -> Layout:
        """Add integers in ``[0, bound)``."""
        return self._add(name, shape, bits.packed_size(prod(shape), bound))

    def rows(self, name: str, count: int, n_rows: int) -> Layout:
        """Add a set of ``count`` row ids of a table of ``n_rows`` rows."""
        return self._add(name, (count,), bits.rows_size(count, n_rows))

    def _add(self, name: str, shape: tuple[int, ...], size: int) -> Layout:
        self.size += len(_opening(name, shape, size)) + size + 1  # the part
        return self


def _opening(name: str, shape: tuple[int, ...], size: int) -> bytes:
    """Return what stands in front of a field's data: an array, name, shape, length.

    Data are joined to it, not packed: packing would copy them twice.
    """
    start = bytes(_PACKER.pack((name, shape, b"", 0))[:-3])  # without data and part
    # msgpack writes a length below 2^8 in one byte, below 2^16 in two, or in four.
    if size < 2**8:
        return start + b"\xc4" + size.to_bytes(1, "big")
    if size < 2**16:
        return start + b"\xc5" + size.to_bytes(2, "big")
    return start + b"\xc6" + size.to_bytes(4, "big")


def unpack(data: bytes) -> tuple[Any, ...]:
    """Return the array that msgpack holds.

    Raises
    ------
    PayloadError
        If it holds none.
    """
    try:
        entries = msgpack.unpackb(data, use_list=False, strict_map_key=True)
    except ValueError as error:  # all of msgpack's are
        raise PayloadError(f"not a payload: {error}") from error
    if not isinstance(entries, tuple):
        raise PayloadError(f"not a payload: {type(entries).__name__}")
    return entries
