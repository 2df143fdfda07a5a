"""NNC: values quantised by one step, and a binary coder that adapts to contexts."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    fits_raw,
    put_update_rows,
    raw_payload,
    raw_update,
    row_update,
)
from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.arithmetic import (
    finish,
    get,
    put,
    start_coder,
    start_decoder,
)
from recbole_fedras.wire.payload import Layout, Payload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_BYTE = 256  # bound of an integer that is a byte
_FINEST = 2.0**-15  # of the largest value: the smallest step
_MOST_BITS = 16  # of an integer's magnitude

# Contexts: three of the significance of a value, three of its sign, both by the sign
# of the value before; two, by sign, of each of ten flags "larger than 1, 2, ... 10";
# and one of each bit of the length of what is left.
_N_FLAGS = 10
_SIGN, _LARGER, _LENGTH = 3, 6, 6 + 2 * _N_FLAGS
_EVEN = _LENGTH + _MOST_BITS  # bits of which nothing is learned


class NNC(Compressor):
    """Uniform quantisation and context-adaptive binary arithmetic coding.

    Source: the entropy coder DeepCABAC of the standard Neural Network Coding (ISO/IEC
    15938-17), read as its reference software (fraunhoferhhi/nncodec,
    ``ContextModeler.cpp``, ``CABACDecoder.cpp``). Every value is rounded to a multiple
    of one step. An integer becomes bits: is it zero; its sign; is it larger than 1, 2,
    up to 10; what is left, as an Exp-Golomb code. Each of them is coded with a
    probability learned from those before it in the same context, so that nothing of a
    model is sent. The step is the smallest for which the code takes no more bytes than
    the budget's float32 values would, ``4 floor(N d (1 - CR))``, or than a budget of
    all bytes leaves, but never finer than 2^-15 of the largest value.

    Notes
    -----
    Rows are read one after the other, so that what the coder learns follows them: of
    rows of small norm most values are zero, and take a fraction of a bit. What
    :class:`~recbole_fedras.compressor.klt.KLT` gains by a rotation is not sought here.

    The coder is of our own, about a hundred lines: a library that codes by contexts
    which adapt after every bit (`nncodec`) brings its own formats and a C++ compiler
    with it; `constriction`, a package of coders, wants all models of a call in advance.

    **Wire**: ``rows`` the n changed rows, ``step`` float32, ``code`` the coder's bytes,
    booked as items: ``4 + len(code) + rows_size(n, N)`` bytes and framing. Updates for
    which float32 is no larger travel as they are (``values``). An empty ``code`` stands
    for zeros.

    **Departures**: rounding is to the nearest; the software may weigh error against
    bits (RDOQ) and quantise with dependent steps (TCQ). Probabilities are means of two
    estimates that adapt by 1/16 and 1/128, from 1/2 on; the software chooses such rates
    for each context and sends its choice. FedQ and other uses of the standard in
    federated learning were not available to us.

    Examples
    --------
    No more than the bytes of 8 of the 64 rows:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = NNC().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"] <= 4 * budget.values, 4 * budget.values
    (True, 1024)
    >>> NNC().decode(payload, ctx).rows.shape
    torch.Size([64, 32])
    """

    threaded = True
    threaded_decoding = True
    deterministic = True

    def validate(self, budget: Budget) -> None:
        """Require the bytes of one row."""
        limit = budget.least(lambda n: self._limit(n, budget))
        budget.require("number of rows' worth of bytes", limit // (4 * budget.dim))

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Find the step, and code."""
        limit = self._limit(len(update), budget)
        if 4 * update.rows.numel() <= limit or fits_raw(len(update), budget):
            return raw_payload(update, ctx.n_items)
        values = update.rows.numpy().astype(np.float64).ravel()
        if not np.isfinite(values).all():
            raise ValueError("NNC: a row is not finite")
        step, code = _smallest_step(values, limit - 4)
        payload = put_update_rows(Payload(), update, ctx.n_items)
        payload.put_floats("step", np.array([step], np.float32))
        return payload.put_ints("code", code.astype(np.int64), _BYTE, "items")

    @staticmethod
    def _limit(n: int, budget: Budget) -> int:
        """Bytes that the fields booked as items may take."""
        if budget.n_bytes is None:
            return 4 * budget.values

        def layout(count: int) -> Layout:
            rest = Layout().rows("rows", n, budget.n_items).floats("step", 1)
            return rest.ints("code", _BYTE, count)

        return 4 + budget.most(0, budget.n_bytes, layout)

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Decode the integers."""
        if "values" in payload:
            return raw_update(payload, ctx)
        ids = payload.rows("rows", ctx.n_items)
        step = float(payload.floats("step", 1)[0])
        code = payload.ints("code", _BYTE, None).astype(np.uint8)
        integers = np.zeros(len(ids) * ctx.dim, np.int64)
        if len(code) and not _read(code, integers):
            raise PayloadError("field 'code': an integer of more bits than any has")
        with np.errstate(over="ignore", invalid="ignore"):  # whatever was received
            rows = (integers * step).astype(np.float32).reshape(len(ids), ctx.dim)
        return row_update(ids, rows)


def _smallest_step(values: Floats, limit: int) -> tuple[np.float32, Bytes]:
    """Search for the smallest step whose code takes at most ``limit`` bytes."""
    # The step is sent in float32, and so must not round to 0.
    tiny = float(np.finfo(np.float32).tiny)
    most = float(np.abs(values).max(initial=0))
    finest = max(most * _FINEST, tiny)
    # Steps that have proved too fine and coarse enough, and the bytes of their codes.
    too_fine, too_many, fits = 0.0, 0, np.inf
    best: Bytes = np.zeros(0, np.uint8)
    step, target = float(np.abs(values).mean()), 0.998 * limit
    for _ in range(16):
        step = float(np.float32(max(step, finest)))
        integers = np.rint(values / step).astype(np.int64)
        code = _code(integers, limit)
        if len(code) > limit:
            too_fine, too_many = step, len(code)
        else:
            fits, best = step, code
            if len(code) > 0.995 * limit or step == np.float32(finest):
                break
        if too_many and np.isfinite(fits):
            # Bytes fall about as the logarithm of the step grows: along a line.
            share = (target - len(best)) / (too_many - len(best))
            step = fits * (too_fine / fits) ** min(max(share, 0.05), 0.95)
        else:
            # A step half as large costs at least a bit for each integer but zeros.
            bits = 8 * (len(code) - target) / max(np.count_nonzero(integers), 1)
            step *= 2.0 ** min(max(bits, -4), 4)
    return (np.float32(fits), best) if len(best) else (np.float32(1), best)


def _code(integers: Ints, limit: int) -> Bytes:
    """Code integers; zeros take nothing.

    What is longer than the limit is of the right length, and of no use.
    """
    code = np.zeros(limit, np.uint8)
    size = _write(integers, code) if integers.any() else 0
    return code[:size] if size <= limit else np.zeros(size, np.uint8)


@njit(nogil=True, cache=True)
def _share(context: int, states: Ints) -> int:
    """Probability of a 1 in a context, in 65536ths."""
    return int((states[context, 0] + states[context, 1]) >> 1)


@njit(nogil=True, cache=True)
def _learn(bit: bool, context: int, states: Ints) -> None:
    """Move both estimates of a context towards the bit."""
    if context == _EVEN:
        return
    # They stop short of 0 and 1, where a shift leaves nothing.
    fast, slow = states[context, 0], states[context, 1]
    if bit:
        fast += (65536 - fast) >> 4
        slow += (65536 - slow) >> 7
    else:
        fast -= fast >> 4
        slow -= slow >> 7
    states[context, 0], states[context, 1] = fast, slow


@njit(nogil=True, cache=True)
def _put(bit: bool, context: int, states: Ints, coder: Ints, code: Bytes) -> None:
    """Write a bit, and learn from it."""
    put(bit, _share(context, states), coder, code)
    _learn(bit, context, states)


@njit(nogil=True, cache=True)
def _get(context: int, states: Ints, coder: Ints, code: Bytes) -> bool:
    """Read a bit, and learn from it."""
    bit = get(_share(context, states), coder, code)
    _learn(bit, context, states)
    return bool(bit)


@njit(nogil=True, cache=True)
def _sign_of(integer: int) -> int:
    """0 for zero, 1 for a negative integer, 2 for a positive one."""
    return 2 if integer > 0 else 1 if integer < 0 else 0


@njit(nogil=True, cache=True)
def _write(integers: Ints, code: Bytes) -> int:
    """Code integers; return how many bytes they take, also if that is too many."""
    states = np.full((_EVEN + 1, 2), 32768)
    coder = start_coder()
    before = 0
    for integer in integers:
        magnitude, negative = abs(integer), integer < 0
        _put(magnitude > 0, before, states, coder, code)
        if magnitude:
            _put(negative, _SIGN + before, states, coder, code)
        flag = 0
        while magnitude > flag and flag < _N_FLAGS:
            context = _LARGER + 2 * flag + negative
            flag += 1
            _put(magnitude > flag, context, states, coder, code)
        if magnitude > _N_FLAGS:
            # What is left, from 1 on: its number of bits, one by one, then those
            # below the leading one.
            rest, length = magnitude - _N_FLAGS, 0
            while rest >> (length + 1):
                _put(True, _LENGTH + length, states, coder, code)
                length += 1
            _put(False, _LENGTH + length, states, coder, code)
            for place in range(length):
                _put(rest >> place & 1 == 1, _EVEN, states, coder, code)
        before = _sign_of(integer)
    return finish(coder, code)


@njit(nogil=True, cache=True)
def _read(code: Bytes, integers: Ints) -> bool:
    """Invert :func:`_write`; False if an integer has more bits than any has."""
    states = np.full((_EVEN + 1, 2), 32768)
    coder = start_decoder(code)
    before = 0
    for i in range(len(integers)):
        magnitude, negative = 0, False
        if _get(before, states, coder, code):
            magnitude = 1
            negative = _get(_SIGN + before, states, coder, code)
            while magnitude <= _N_FLAGS:
                context = _LARGER + 2 * (magnitude - 1) + negative
                if not _get(context, states, coder, code):
                    break
                magnitude += 1
        if magnitude > _N_FLAGS:
            length = 0
            while _get(_LENGTH + length, states, coder, code):
                length += 1
                if length == _MOST_BITS:
                    return False
            rest = 1 << length
            for place in range(length):
                rest |= _get(_EVEN, states, coder, code) << place
            magnitude = _N_FLAGS + rest
        integers[i] = -magnitude if negative else magnitude
        before = _sign_of(integers[i])
    return True
