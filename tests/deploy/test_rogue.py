"""Nodes that lie: a run goes on as if they were silent."""

from __future__ import annotations

import msgpack
import pytest
import torch
from conftest import long, rounds_of
from test_node import deployed, links_to, parts, small  # noqa: F401

from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.errors import ConfigError
from recbole_fedras.wire.frame import Step, pack, unpack
from recbole_fedras.wire.message import Message

#: Answers to anything, in place of honest ones.
NONSENSE = {
    "nothing": b"",
    "no frame": b"\xc1" * 9,
    "no steps": msgpack.packb(([], [])),
    "bodies by name": msgpack.packb(({}, [("answers", [(b"", "x")], None)])),
    "bodies that are sizes": msgpack.packb(([2**62], [("answers", [(b"", 0)], None)])),
    "heads that are sizes": msgpack.packb(([b""], [("answers", [(2**40, 0)], None)])),
    "a step without a name": msgpack.packb(([], [(None, [], None)])),
    "a huge array": b"\x92\xdd\xff\xff\xff\xff" + bytes(99),
    "deep": b"\x91" * 5000,
    "too large": pack(
        [Step("answers"), Step("held", value=[[], {}]), Step("x" * 9**7)]
    ),
    "a failure without words": pack([Step("failed", value=3)]),
    "a failure by name": pack([Step("failed", value={"a": 1})]),
    "versions of text": pack([Step("held", value=[["3"], {}])]),
    "versions that are no list": pack([Step("held", value=[3, {}])]),
    "seconds of text": pack([Step("held", value=[[], {"compression": []}])]),
    "holds nothing": pack([Step("held", value=None)]),
}


def of_updates(change):
    """Change the answers to invitations."""

    def lie(answer: bytes) -> bytes:
        return pack(
            step._replace(messages=change(list(step.messages)))
            if step.what == "answers"
            else step
            for step in unpack(answer)
        )

    return lie


def of_sums(change):
    """Change what evaluations add up to."""

    def lie(answer: bytes) -> bytes:
        return pack(
            step._replace(value=change(step.value))
            if step.what.startswith("evaluate")
            else step
            for step in unpack(answer)
        )

    return lie


def of_held(versions, seconds):
    """Change what a node says of itself; all else is dropped."""
    return lambda answer: pack([Step("held", value=[versions, seconds])])


def _of_others(messages):
    header = Message.from_parts(*messages[0]).header
    return [
        (Message(header._replace(client=client), body).head, body)
        for client, (_, body) in enumerate(messages)
    ]


LIES = {
    "all twice, and more": of_updates(lambda messages: messages * 99),
    "heads without messages": of_updates(
        lambda messages: [(b"\xc1", b"")] * len(messages)
    ),
    "numbers without end": of_updates(
        lambda messages: [(b"\x97\x05\xd9\xff" + b"9" * 255, b"")]
    ),
    "none of its clients": of_updates(_of_others),
    "no metrics": of_sums(lambda sums: sums | {"sums": {}}),
    "another metric": of_sums(
        lambda sums: sums | {"sums": sums["sums"] | {"a@1": 0.0}}
    ),
    "metrics of text": of_sums(
        lambda sums: sums | {"sums": dict.fromkeys(sums["sums"], "1")}
    ),
    "metrics that are no numbers": of_sums(
        lambda sums: sums | {"sums": dict.fromkeys(sums["sums"], float("nan"))}
    ),
    "too good": of_sums(lambda sums: sums | {"sums": dict.fromkeys(sums["sums"], 1e9)}),
    "too many users": of_sums(lambda sums: sums | {"n_users": 10**12}),
    "no sums": of_sums(lambda sums: None),
    "a list": of_sums(lambda sums: [sums]),
    "no versions": of_held([], {}),
    "versions before the first": of_held([-(2**60)], {}),
    "versions after the last": of_held([2**60], {}),
    "seconds without end": of_held([0], {"compression": 1e300, "aggregation": -1.0}),
    "phases without end": of_held([0], {str(phase): 1.0 for phase in range(999)}),
}


def lying(parts, lie):  # noqa: F811
    """Return links to an honest node and one that lies once the run has begun."""
    links = links_to(parts)
    honest = links.handles["1"]

    def handle(request: bytes) -> bytes:
        answer = honest(request)
        begun = unpack(request)[0].what == "run"
        return lie(answer) if begun else answer

    links.handles["1"] = handle
    return links


def run_of(parts, links):  # noqa: F811
    keys = {"min_shards": 1, "epochs": 2, "eval_step": 1}
    result = deployed(parts, links, "NCF", **keys)
    last = f"{result['run_folder']}/last.pth"
    return result, read_checkpoint(last)["simulation"]["server"]["parameters"]


@pytest.fixture
def silent(parts):  # noqa: F811
    """Run with a node that is silent once the run has begun."""
    links = links_to(parts)
    honest = links.handles["1"]
    links._loses = lambda name: name == "1" and began
    began = False

    def handle(request: bytes) -> bytes:
        nonlocal began
        began = unpack(request)[0].what == "run"
        return honest(request)

    links.handles["1"] = handle
    return run_of(parts, links)


@pytest.mark.parametrize("every", [6, long(1)])
def test_who_lies_counts_as_silent(parts, silent, every):  # noqa: F811
    """Evaluation sums, and updates: whatever is wrong with them."""
    expected, table = silent
    lies = {name: lambda _, data=data: data for name, data in NONSENSE.items()}
    for name, lie in list((lies | LIES).items())[::every]:
        result, found = run_of(parts, lying(parts, lie))
        about = lie.__qualname__.partition(".")[0]
        if about != "of_sums":
            torch.testing.assert_close(found, table, rtol=0, atol=0, msg=name)
        assert result["test_result"].keys() == expected["test_result"].keys(), name
        if about not in {"of_sums", "of_updates"}:
            assert result["test_result"] == expected["test_result"], name
        for row in rounds_of(result):
            assert len(row["refused"]) < 10**5, name


@pytest.mark.parametrize("field", ["n_users", "items"])
@pytest.mark.parametrize("value", [None, -1, 0, 2**62, "x", [None], [""], ["a", "a"]])
def test_who_introduces_itself_badly_is_named(parts, field, value):  # noqa: F811
    links = links_to(parts)
    honest = links.handles["1"]

    def handle(request: bytes) -> bytes:
        (step,) = unpack(honest(request))
        return pack([step._replace(value=step.value | {field: value})])

    links.handles["1"] = handle
    with pytest.raises(ConfigError, match="shard 1 does not take part"):
        deployed(parts, links, "MF", catalogue=None)
