"""Attacks every compressor's messages: refused as such, or decoded within their shape.

    python tests/fuzz.py [--mutations=1000000] [--seed=0]

Bits flipped, bytes dropped, doubled, overwritten, parts of other messages put in,
fields exchanged. Prints what became of them, the slowest decoding and the memory at its
peak.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections import Counter
from dataclasses import replace
from time import perf_counter

import msgpack
import numpy as np
import torch
from conftest import CTX, DIM, N_ITEMS, budget, make_update
from methods import VARIANTS, make
from tabulate import tabulate
from tqdm import tqdm

from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import PayloadError

ATTACKED = [*VARIANTS, ("BinaryCodes", {})]
MOST_BYTES = 8 * N_ITEMS * DIM + 2048


HEADER = Header(Kind.UPDATE, 3, 0, 4, 3, 1)


def label(variant: tuple[str, dict]) -> str:
    """Name of a compressor and its settings."""
    name, keys = variant
    return " ".join([name, *map(str, keys.values())])


def seeds() -> dict[str, list[bytes]]:
    """Messages of every compressor, nominal and wire, by :func:`label`."""
    messages = {}
    for name, keys in ATTACKED:
        compressor = make(name, **keys)
        sent = []
        for n_rows in (1, 30, 50, N_ITEMS):
            for rate in (0.5, 0.75):
                nominal = budget(rate)
                wire = replace(nominal, n_bytes=int(4 * N_ITEMS * DIM * (1 - rate)))
                for own in (nominal, wire):
                    payload = compressor.encode(make_update(n_rows), own, CTX)
                    sent.append(Message.of(payload, HEADER).data)
        messages[label((name, keys))] = sent
    return messages


def mutate(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """Change some bytes, or exchange or rename fields where it still parses."""
    if rng.random() < 0.2:
        *header, fields = msgpack.unpackb(data, use_list=True)
        *_, more = msgpack.unpackb(others[rng.integers(len(others))], use_list=True)
        field = fields[rng.integers(len(fields))]
        other = more[rng.integers(len(more))]
        part = rng.integers(4)
        field[part] = other[part]
        if rng.random() < 0.3:
            field[1] = [int(rng.integers(2**31)) for _ in field[1]]
        return msgpack.packb((*header, fields))
    broken = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not broken:
            break
        at, length = rng.integers(len(broken)), rng.integers(1, 30)
        how = rng.integers(5)
        if how == 0:
            broken[at] ^= 1 << rng.integers(8)
        elif how == 1:
            del broken[at : at + length]
        elif how == 2:
            broken[at:at] = broken[at : at + length]
        elif how == 3:
            broken[at] = rng.choice([0, 1, 0x7F, 0x80, 0xC0, 0xDD, 0xFF])
        else:
            other = others[rng.integers(len(others))]
            start = rng.integers(len(other))
            broken[at : at + length] = other[start : start + length]
    return bytes(broken)


def attack(name: str, keys: dict, data: bytes) -> str:
    """Decode, and say what happened.

    Raises
    ------
    AssertionError
        If an update does not have its shape. Whatever else is raised is a bug too.
    """
    try:
        message = Message.from_bytes(data)
        message.require_size(MOST_BYTES)
        payload = message.payload
        decoded = make(name, **keys).decode(payload, CTX)
    except PayloadError:
        return "refused"
    assert decoded.rows.shape == (len(decoded.ids), DIM)
    assert decoded.rows.dtype == torch.float32
    ids = decoded.ids.tolist()
    assert ids == sorted(set(ids))
    assert not ids or 0 <= ids[0] <= ids[-1] < N_ITEMS
    return "decoded"


def main(argv: list[str]) -> None:
    """Attack all compressors in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = np.random.default_rng(args.seed)
    messages = seeds()
    everything = [data for sent in messages.values() for data in sent]
    rows = []
    with tqdm(total=args.mutations, unit="mutation") as bar:
        for variant in ATTACKED:
            sent = messages[label(variant)]
            outcomes: Counter[str] = Counter()
            slowest = 0.0
            for _ in range(-(-args.mutations // len(ATTACKED))):
                data = mutate(sent[rng.integers(len(sent))], everything, rng)
                start = perf_counter()
                outcomes[attack(*variant, data)] += 1
                slowest = max(slowest, perf_counter() - start)
                bar.update()
            counts = outcomes["refused"], outcomes["decoded"]
            rows.append((label(variant), *counts, f"{1e3 * slowest:.1f}"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(tabulate(rows, ("compressor", "refused", "decoded", "slowest ms"), "github"))
    print(f"{args.mutations:,} mutations, seed {args.seed}; peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
