"""A node whose shard ``1`` forges some of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from recbole_fedras.deploy import node
from recbole_fedras.wire.frame import Parts, pack, unpack
from recbole_fedras.wire.message import Message

#: Of the answers to a round, those of the first clients of shard 1 are forged.
N_FORGED = 5


def make_handle(
    data_path: Path, dataset: str, folder: Path, config_files: Sequence[str]
) -> Callable[[bytes], bytes]:
    """Answer as a node does, but for the updates of shard 1."""
    honest = node.make_handle(data_path, dataset, folder, config_files)
    if data_path.name != "1":
        return honest

    def handle(request: bytes) -> bytes:
        return pack(
            step._replace(messages=forged(step.messages))
            if step.what == "answers"
            else step
            for step in unpack(honest(request))
        )

    return handle


def forged(answers: Sequence[Parts]) -> list[Parts]:
    """Replace the first ones: by absurd values, others' clients, doubles, ..."""
    first = [Message.from_parts(*parts) for parts in answers[:N_FORGED]]
    headers = [message.header for message in first]
    theta = first[0].payload.floats("theta", None)
    absurd = first[0].payload.without("theta")
    absurd.put_floats("theta", np.full_like(theta, 1e38), part="theta")
    bad = [
        Message.of(absurd, headers[0]),
        Message(headers[1]._replace(client=0), first[1].body),
        Message(headers[2]._replace(round=headers[2].round + 1), first[2].body),
        Message(headers[3], b"\xc1"),
    ]
    honest = list(answers[N_FORGED:])
    return [*((message.head, message.body) for message in bad), honest[0], *honest]
