"""Certificates and keys: of a test authority, the server, the nodes."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from recbole_fedras.errors import ConfigError

AUTHORITY, SERVER = "ca", "server"

_DAYS = 825  # the longest that browsers and macOS accept of a server's certificate
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def make_keys(folder: Path, hosts: Sequence[str], nodes: Sequence[str]) -> list[Path]:
    """Write what is missing of ``ca``, ``server`` and the nodes; return what is new.

    Parameters
    ----------
    folder : Path
        ``ca.crt`` and ``NAME.key`` go to the node; ``*.pub``, ``ca.crt`` and
        ``server.*`` stay with the server; ``ca.key`` best goes offline.
    hosts : sequence of str
        Names and addresses that nodes know the server by; this machine's loopback
        device is among them.
    nodes : sequence of str
        Names of nodes.

    Raises
    ------
    ConfigError
        For a name that is no file's name, or that this module uses itself.
    """
    for name in nodes:
        if not _NAME.fullmatch(name) or name in (AUTHORITY, SERVER):
            raise ConfigError(
                f"node {name!r}: a name has up to 64 letters, digits, '.', '_', '-', "
                f"begins with a letter or a digit, and is neither {AUTHORITY!r} nor "
                f"{SERVER!r}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    before = set(folder.iterdir())
    if not (folder / f"{AUTHORITY}.crt").is_file():
        _make_authority(folder)
    if not (folder / f"{SERVER}.crt").is_file():
        _make_server(folder, hosts)
    for name in nodes:
        if not (folder / f"{name}.key").is_file():
            _make_node(folder, name)
    return sorted(set(folder.iterdir()) - before)


def _make_authority(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("recbole-fedras test authority")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _certificate(name, key, name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )
    _write(folder / f"{AUTHORITY}.key", _pem(key), secret=True)
    _write(
        folder / f"{AUTHORITY}.crt",
        certificate.public_bytes(serialization.Encoding.PEM),
    )


def _make_server(folder: Path, hosts: Sequence[str]) -> None:
    pem = (folder / f"{AUTHORITY}.key").read_bytes()
    authority = serialization.load_pem_private_key(pem, None)
    if not isinstance(authority, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{folder / AUTHORITY}.key is not of an elliptic curve")
    issuer = x509.load_pem_x509_certificate((folder / f"{AUTHORITY}.crt").read_bytes())
    key = ec.generate_private_key(ec.SECP384R1())
    known_by = dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts])
    certificate = (
        _certificate(_name("recbole-fedras server"), key, issuer.subject)
        .add_extension(
            x509.SubjectAlternativeName([_host(host) for host in known_by]),
            critical=False,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(authority, hashes.SHA384())
    )
    _write(folder / f"{SERVER}.key", _pem(key), secret=True)
    _write(
        folder / f"{SERVER}.crt", certificate.public_bytes(serialization.Encoding.PEM)
    )


def _make_node(folder: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    _write(folder / f"{name}.pub", public + b"\n")
    _write(folder / f"{name}.key", private, secret=True)


def _certificate(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem


def _write(path: Path, data: bytes, secret: bool = False) -> None:
    """Write a new file, which nobody else can read if it is secret."""
    mode = 0o600 if secret else 0o644
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb"
    ) as f:
        f.write(data)
