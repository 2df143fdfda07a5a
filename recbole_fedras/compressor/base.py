"""What a compressor is: it encodes a row-sparse update and decodes it elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.errors import BudgetError, ConfigError
from recbole_fedras.numeric.parallel import mapper
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.wire.payload import Layout, Payload

#: Sender of what the server encodes; clients are numbered from 0.
SERVER = -1

#: What most tables hold.
REAL = "real numbers"


@dataclass(frozen=True, slots=True)
class RowUpdate:
    """Row-sparse update of one table.

    Attributes
    ----------
    ids : Tensor of int64, shape (n,)
        Rows that changed, strictly increasing; on the CPU.
    rows : Tensor of float32, shape (n, dim)
        Their change.

    Examples
    --------
    >>> update = RowUpdate(torch.tensor([2, 5]), torch.ones(2, 4))
    >>> len(update), update.rows.shape
    (2, torch.Size([2, 4]))
    """

    ids: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class CohortUpdate:
    """The updates of clients of a cohort, stored one behind the other.

    Their memory is used again for the clients that follow: copy what is to be kept.

    Attributes
    ----------
    clients : Tensor of int64, shape (n_clients,)
        Who they are, increasing.
    offsets : Tensor of int64, shape (n_clients + 1,)
        Client ``c`` owns the entries ``offsets[c]:offsets[c + 1]``.
    ids, rows : Tensor
        As in :class:`RowUpdate`, increasing within each client.
    theta : Tensor of float32, shape (n_clients, n_theta)
        Change of the scoring network, flattened; dense.

    Examples
    --------
    >>> offsets, ids = torch.tensor([0, 1, 3]), torch.tensor([4, 0, 2])
    >>> rows, theta = torch.ones(3, 8), torch.zeros(2, 0)
    >>> cohort = CohortUpdate(torch.tensor([7, 9]), offsets, ids, rows, theta)
    >>> len(cohort), cohort[1].ids
    (2, tensor([0, 2]))
    """

    clients: Tensor
    offsets: Tensor
    ids: Tensor
    rows: Tensor
    theta: Tensor

    @classmethod
    def of(
        cls, clients: Tensor, updates: Sequence[RowUpdate], theta: Tensor
    ) -> CohortUpdate:
        """Store clients' updates one behind the other."""
        return cls(
            clients,
            torch.tensor(np.cumsum([0, *map(len, updates)])),
            torch.cat([update.ids for update in updates]),
            torch.cat([update.rows for update in updates]),
            theta,
        )

    def select(self, places: Sequence[int]) -> CohortUpdate:
        """Return a copy of some clients' updates, in the order given."""
        updates = [self[place] for place in places]
        return self.of(self.clients[places], updates, self.theta[places])

    def __len__(self) -> int:
        return len(self.clients)

    def __getitem__(self, index: int) -> RowUpdate:
        if not 0 <= index < len(self):
            raise IndexError(index)
        entries = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return RowUpdate(self.ids[entries], self.rows[entries])

    def __iter__(self) -> Iterator[RowUpdate]:
        counts = self.offsets.diff().tolist()
        ids, rows = torch.split(self.ids, counts), torch.split(self.rows, counts)
        return map(RowUpdate, ids, rows)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a compression rate leaves of a table.

    Attributes
    ----------
    n_items, dim : int
        Shape of the table.
    compression_rate : float
        ``1 - cost / cost of the table``, in [0, 1).
    n_bytes : int or None
        What a payload may take in all, framing included; None, where the rate is the
        papers' and counts values of items only.

    Examples
    --------
    The FedRAS paper's groups for MovieLens-100K at 93.75 %, section 5.1:

    >>> budget = Budget(n_items=1682, dim=32, compression_rate=0.9375)
    >>> budget.rows, budget.columns, budget.bits
    (105, 2, 2)
    """

    n_items: int
    dim: int
    compression_rate: float
    n_bytes: int | None = None

    @property
    def rows(self) -> int:
        """Whole rows, the FedRAS paper's C_e or e_u: ``floor(N (1 - CR))``."""
        return _floor(self.n_items * (1 - self.compression_rate))

    @property
    def columns(self) -> int:
        """Values per row, or the rank: ``floor(d (1 - CR))``."""
        return min(floor(self.dim * kept(self.compression_rate)), self.dim)

    @property
    def bits(self) -> int:
        """Bits per value, of 32: ``floor(32 (1 - CR))``."""
        return floor(32 * kept(self.compression_rate))

    @property
    def values(self) -> int:
        """Values in all: ``floor(N d (1 - CR))``."""
        return _floor(self.n_items * self.dim * (1 - self.compression_rate))

    def most(self, nominal: int, limit: int, layout: Callable[[int], Layout]) -> int:
        """Return how many groups, columns or values a payload may have.

        Parameters
        ----------
        nominal : int
            The answer where the rate is nominal.
        limit : int
            More would be of no use, however large the budget.
        layout : callable
            Layout of a payload that has so many; it grows with their number.

        Returns
        -------
        int
            Between 0 and ``limit``.
        """
        if self.n_bytes is None:
            return min(nominal, limit)
        # Bisection: ``fits`` always does (or is 0), ``too_many`` never does.
        fits, too_many = 0, limit + 1
        while fits + 1 < too_many:
            count = (fits + too_many) // 2
            if layout(count).size <= self.n_bytes:
                fits = count
            else:
                too_many = count
        return fits

    def least(self, amount: Callable[[int], int]) -> int:
        """Return the least amount that an update may leave room for.

        Most bytes are taken where all rows changed, or all but one: their ids are sent.
        """
        return min(amount(self.n_items - 1), amount(self.n_items))

    def require(self, what: str, amount: int) -> None:
        """Raise a BudgetError that names the remedy if ``amount`` is not positive."""
        if amount < 1:
            of = "" if self.n_bytes is None else " with budget=wire"
            raise BudgetError(
                f"compression_rate={self.compression_rate}{of} leaves a {what} of 0 "
                f"for {self.n_items} rows x {self.dim} columns of the item table; "
                "it must leave at least 1: choose a lower compression_rate"
            )


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What both ends know before a payload arrives.

    Attributes
    ----------
    round : int
        The round in which the update arose.
    seed : int
        The run's seed, shared once.
    n_items, dim : int
        Shape of the table exchanged; rows of an item embedding's are no items.
    sender : int
        The client, or :data:`SERVER`.
    receiver : int or None
        The client, if the server encodes for it alone.
    base : Tensor or None, shape (n_items, dim)
        The table that the update changes, if both ends know it; never to be written.
    downlink : Payload or None
        What a client was sent in this round, where that client encodes.

    Examples
    --------
    Both ends draw the same random numbers, and every client others:

    >>> ctx = RoundContext(round=3, seed=2020, n_items=1682, dim=32, sender=7)
    >>> ctx.generator().random() == ctx.generator().random()
    True
    >>> other = RoundContext(round=3, seed=2020, n_items=1682, dim=32, sender=8)
    >>> ctx.generator().random() == other.generator().random()
    False
    """

    round: int
    seed: int
    n_items: int
    dim: int
    sender: int = SERVER
    receiver: int | None = None
    base: Tensor | None = None
    downlink: Payload | None = None

    def base_rows(self, ids: Tensor) -> Tensor:
        """Return rows of the table that the update changes, shape (n, dim).

        Raises
        ------
        ConfigError
            If both ends do not know it.
        """
        if self.base is None:
            raise ConfigError(
                "the compressor needs to know the receiver's table: choose another for "
                "replica=stale, and with bandwidth set downlink_feedback=True"
            )
        return self.base[ids]

    def generator(self) -> np.random.Generator:
        """Random numbers of this sender, to this receiver, in this round."""
        key = [self.round, self.sender + 1]
        if self.receiver is not None:
            key.append(self.receiver)
        return generator(self.seed, Stream.COMPRESSOR, *key)

    def shared_generator(self) -> np.random.Generator:
        """Random numbers that every participant of this round can draw alike."""
        return generator(self.seed, Stream.COMPRESSOR, self.round)


class Compressor(ABC):
    """Encodes updates into payloads and decodes payloads into updates.

    A subclass implements :meth:`encode` and :meth:`decode`; its constructor parameters
    are its hyper-parameters and become config keys of the same names. :meth:`decode`
    must work in a fresh object: what the receiver needs is in the payload or in the
    context. :meth:`encode`, which serves all clients, keeps no state; what
    :meth:`encode_broadcast` keeps, :meth:`state_dict` returns.

    Examples
    --------
    One that sends a row's mean in place of its values:

    >>> class Means(Compressor):
    ...     def encode(self, update, budget, ctx):
    ...         payload = put_update_rows(Payload(), update, ctx.n_items)
    ...         return payload.put_floats("means", update.rows.mean(1).numpy())
    ...
    ...     def decode(self, payload, ctx):
    ...         ids = payload.rows("rows", ctx.n_items)
    ...         means = payload.floats("means", len(ids))
    ...         return row_update(ids, np.repeat(means[:, None], ctx.dim, axis=1))
    >>> from recbole_fedras.compressor import check_compressor
    >>> check_compressor(Means, compression_rate=0.5)  # silent: it keeps the contract
    >>> update = row_update(np.arange(3), np.ones((3, 8), np.float32))
    >>> ctx = RoundContext(round=0, seed=2020, n_items=100, dim=8)
    >>> payload = Means().encode(update, Budget(100, 8, 0.5), ctx)
    >>> payload.part_bytes()["items"], Means().decode(payload, ctx).rows.shape
    (12, torch.Size([3, 8]))
    """

    #: Whether every update arrives as it is; no budget of bytes binds it.
    lossless: ClassVar[bool] = False

    #: Whether payloads are the same at any compression rate; no budget binds it.
    fixed_rate: ClassVar[bool] = False

    #: Bits that a value of the table takes, where every update arrives as it is.
    value_bits: ClassVar[int] = 32

    #: What tables may hold whose updates it carries, see
    #: ``FederatedRecommender.table_values``; None: anything.
    table_values: ClassVar[tuple[str, ...] | None] = (REAL,)

    #: Whether the method needs ``RoundContext.base``, the table that both ends know.
    needs_base: ClassVar[bool] = False

    #: Whether payloads add up. Of an update of all rows, fields booked as items then
    #: are floats, and those of a sum of updates are the sums of theirs; other fields
    #: are the same for every sender of a round. Secure aggregation needs that.
    linear: ClassVar[bool] = False

    #: Whether what arrives is nearer to an update, on average, than nothing is: error
    #: feedback needs that. An object may say otherwise than its class.
    contracting: bool = True

    #: Whether clients of one run may have different compression rates.
    heterogeneous: ClassVar[bool] = True

    #: Whether clients send of as many rows as the downlink says.
    follows_downlink: ClassVar[bool] = False

    #: Whether clients' updates are encoded in threads. That pays where most of it is
    #: compiled code without the interpreter lock; it must keep no state.
    threaded: ClassVar[bool] = False

    #: Whether they are decoded in threads, too. Most do that in little time, or with
    #: the lock.
    threaded_decoding: ClassVar[bool] = False

    #: Whether :meth:`encode` and :meth:`decode` depend on neither sender nor receiver,
    #: as they draw nothing. Who lacks the same is then sent the same, encoded once.
    deterministic: ClassVar[bool] = False

    @classmethod
    def obeys_rate(cls) -> bool:
        """Whether a compression rate makes any difference to it."""
        return not (cls.lossless or cls.fixed_rate)

    def validate(self, budget: Budget) -> None:  # noqa: B027 - optional
        """Raise a BudgetError if the method cannot work within ``budget``."""

    @abstractmethod
    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Encode one update (never changed) within a budget."""

    @abstractmethod
    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Rebuild the update from a payload and what both ends know.

        Raises
        ------
        PayloadError
            If the payload does not have the method's form.
        """

    def encode_cohort(
        self,
        updates: CohortUpdate,
        budgets: Sequence[Budget],
        ctxs: Sequence[RoundContext],
    ) -> list[Payload]:
        """Encode each client's update; override to treat a cohort at once."""
        encoded = mapper(self.threaded)(self.encode, updates, budgets, ctxs)
        return list(encoded)

    def decode_cohort(
        self, payloads: Iterable[Payload], ctxs: Sequence[RoundContext]
    ) -> Iterable[RowUpdate]:
        """Decode what :meth:`encode_cohort` encoded; override with it."""
        return mapper(self.threaded_decoding)(self.decode, payloads, ctxs)

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Encode the server's update once per bandwidth tier.

        Parameters
        ----------
        budgets : sequence of Budget
            One per tier, distinct.
        """
        return [self.encode(update, budget, ctx) for budget in budgets]

    def gradient_map(self, budget: Budget, ctx: RoundContext) -> Tensor | None:
        """Linear map, shape (dim, dim), that local training applies to item gradients.

        None, the default, leaves them as they are. A method that trains in a subspace
        (CoLR) returns its map here.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """State of the sending server, as plain types, for checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore what :meth:`state_dict` returned."""

    def metrics(self) -> dict[str, float]:
        """Figures of the last broadcast worth a column in ``rounds.csv``."""
        return {}


def kept(compression_rate: float) -> float:
    """Return the share that a rate leaves of few things: dimensions, bits, rounds.

    The rate is read as rounded to four decimals, as papers print it: 0.9688 of 32
    dimensions is the paper's 96.88 %, one dimension, although 32 * 0.0312 < 1.
    """
    return 1 - compression_rate + 5e-5  # half of the fourth decimal


def _floor(amount: float) -> int:
    """Round down, but not what is a whole number but for float rounding."""
    return floor(amount + 1e-9)


def largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the values of largest magnitude, increasing.

    Ties go to the first; a forged message may hold NaN, which counts as least.
    """
    magnitudes = np.nan_to_num(np.abs(values), nan=-1.0, posinf=np.inf)
    count = min(count, len(values))
    if count == 0:
        return np.arange(0)
    # The least magnitude that is kept, by partition in linear time; then all above it,
    # and of those equal to it the first ones, until there are enough.
    least = np.partition(magnitudes, -count)[-count]
    chosen = magnitudes > least
    level = np.flatnonzero(magnitudes == least)
    chosen[level[: count - chosen.sum()]] = True
    return np.flatnonzero(chosen)


def put_update_rows(payload: Payload, update: RowUpdate, n_items: int) -> Payload:
    """Add the ids of the changed rows as field ``rows``."""
    return payload.put_rows("rows", update.ids.numpy(), n_items)


def raw_payload(update: RowUpdate, n_items: int) -> Payload:
    """Send the changed rows as they are: fields ``rows`` and ``values`` (n, dim)."""
    payload = put_update_rows(Payload(), update, n_items)
    return payload.put_floats("values", update.rows.numpy())


def raw_layout(n_rows: int, budget: Budget) -> Layout:
    """Layout of :func:`raw_payload`."""
    layout = Layout().rows("rows", n_rows, budget.n_items)
    return layout.floats("values", n_rows, budget.dim)


def fits_raw(n_rows: int, budget: Budget) -> bool:
    """Whether bytes are what counts, and enough for the rows as they are."""
    if budget.n_bytes is None:
        return False
    return raw_layout(n_rows, budget).size <= budget.n_bytes


def raw_update(payload: Payload, ctx: RoundContext) -> RowUpdate:
    """Invert :func:`raw_payload`."""
    ids = payload.rows("rows", ctx.n_items)
    values = payload.floats("values", len(ids), ctx.dim)
    return row_update(ids, values)


def row_update(ids: NDArray[np.int64], rows: NDArray[np.float32]) -> RowUpdate:
    """Make a RowUpdate of numpy arrays, which it shares where it can."""
    return RowUpdate(_shared(ids, np.int64), _shared(rows, np.float32))


def _shared(array: NDArray[Any], dtype: type) -> Tensor:
    """Return a tensor that is the array, or a copy: of what came as bytes."""
    array = np.ascontiguousarray(array, dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def empty_update(dim: int) -> RowUpdate:
    """Return the update that changes nothing."""
    return RowUpdate(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dim))
