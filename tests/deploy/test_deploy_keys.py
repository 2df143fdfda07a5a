"""Keys and certificates: who can read them, and that they are what Flower takes."""

from __future__ import annotations

import ssl
import stat

import pytest

pytest.importorskip("cryptography", reason="needs the extra deploy")

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)

from recbole_fedras.deploy.keys import make_keys
from recbole_fedras.errors import ConfigError


def test_all_are_made_and_secrets_are_their_owners(tmp_path):
    made = make_keys(tmp_path / "keys", ["fed.example.org", "192.0.2.7"], ["a", "b"])
    names = "a.key a.pub b.key b.pub ca.crt ca.key server.crt server.key"
    assert [path.name for path in made] == names.split()
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in made}
    assert modes[".key"] == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_a_second_call_adds_nodes_and_keeps_the_rest(tmp_path):
    before = {path: path.read_bytes() for path in make_keys(tmp_path, [], ["a"])}
    made = make_keys(tmp_path, [], ["a", "b"])
    assert [path.name for path in made] == ["b.key", "b.pub"]
    assert {path: path.read_bytes() for path in before} == before


def test_the_servers_certificate_is_the_authoritys_and_names_hosts(tmp_path):
    make_keys(tmp_path, ["fed.example.org", "192.0.2.7"], [])
    authority, server = (
        x509.load_pem_x509_certificate((tmp_path / f"{name}.crt").read_bytes())
        for name in ("ca", "server")
    )
    server.verify_directly_issued_by(authority)
    extension = server.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    names = [str(name.value) for name in extension.value]
    assert names == ["localhost", "127.0.0.1", "::1", "fed.example.org", "192.0.2.7"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")


def test_a_nodes_keys_are_a_pair_in_flowers_format(tmp_path):
    make_keys(tmp_path, [], ["a"])
    private = load_ssh_private_key((tmp_path / "a.key").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "a.pub").read_bytes())
    assert private.public_key() == public
    assert public.curve.name == "secp384r1"


@pytest.mark.parametrize("name", ["", "../a", "a b", "ca", "server", ".a", "x" * 65])
def test_a_name_is_that_of_a_file(tmp_path, name):
    with pytest.raises(ConfigError, match="a name has up to 64"):
        make_keys(tmp_path, [], [name])
    assert not list(tmp_path.iterdir())
