"""The nodes that a SuperLink knows: their keys, under their names."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from recbole_fedras.deploy.keys import AUTHORITY


def register(address: str, keys: Path) -> list[str]:
    """Register each key ``NAME.pub`` of a folder that is new; return the new names."""
    link = ControlHttpClient.from_server_address(
        server_address=address,
        insecure=False,
        root_certificates=(keys / f"{AUTHORITY}.crt").read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr")],
    )
    nodes = link.ListNodes(ListNodesRequest()).nodes_info
    known = {node.public_key for node in nodes}
    new = []
    for file in sorted(keys.glob("*.pub")):
        key = public_key_to_bytes(load_ssh_public_key(file.read_bytes()))
        if key not in known:
            link.RegisterNode(RegisterNodeRequest(public_key=key, name=file.stem))
            new.append(file.stem)
    link.close()
    return new
