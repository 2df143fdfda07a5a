"""A node's worker: it stays, and answers what the SuperNode beside it has received.

For every message Flower would start a process, which runs the code that the server has
sent. This worker takes the place of those processes: it asks the SuperNode for work as
Flower's executor does, and never runs code that came by the network.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

from recbole_fedras.deploy.records import WHO, pack, unpack

#: Takes a request, returns the answer to it.
Handle: TypeAlias = Callable[[bytes], bytes]

_POLL = 0.1  # seconds between two looks for work, on the loopback device
_HEARTBEAT = 10.0  # seconds; Flower gives a task up if none came for 60

_log = logging.getLogger(__name__)


def serve(handle: Handle, address: str, secret: Path) -> None:
    """Answer messages, one at a time, until this process is ended.

    Parameters
    ----------
    handle : callable
        Takes a request's bytes, returns those of the answer.
    address : str
        ``host:port`` of the SuperNode's Runtime API, on the loopback device.
    secret : Path
        File that the SuperNode was started with: who knows it may take its work.
    """
    desk = _client(
        address,
        SuperExecAuthHttpInterceptor(
            master_secret=secret.read_bytes(),
            protected_methods={"/flwr.proto.Runtime/AcquireTask"},
        ),
    )
    wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while True:
        try:
            task = desk.AcquireTask(wanted)
            if task.token:
                with _at_work(address, task.token) as client:
                    _answer(handle, client)
                continue
        except httpx.HTTPError as error:  # no SuperNode, or it has given the task up
            _log.info("no work: %s", error)
            time.sleep(1)
        time.sleep(_POLL)


def _client(address: str, interceptor: ProtobufClientInterceptor) -> RuntimeHttpClient:
    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,  # it is the loopback device
        root_certificates=None,
        interceptors=[version, interceptor],
    )


@contextmanager
def _at_work(address: str, token: str) -> Iterator[RuntimeHttpClient]:
    """Open a task; tell the SuperNode that it is worked on, as long as that is so."""
    client = _client(address, RuntimeTokenHttpInterceptor(token))
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_HEARTBEAT):
            try:
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPError as error:
                _log.info("heartbeat: %s", error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield client
    finally:
        done.set()
        thread.join()
        client.close()


def _answer(handle: Handle, client: RuntimeHttpClient) -> None:
    message, context, _, _ = pull_task_input(client)
    push_message(client, _reply(handle, message, context), context)
    client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED))


def _reply(handle: Handle, message: Message, context: Context) -> Message:
    """Return the answer; of an error the server learns the class, the log has all."""
    try:
        if message.metadata.message_type == WHO:
            answer = str(context.node_config["name"]).encode()
        else:
            answer = handle(unpack(message.content))
    except Exception as error:
        _log.exception("a request that cannot be answered")
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Message(Error(code=code, reason=type(error).__name__), reply_to=message)
    return Message(pack(answer), reply_to=message)
