"""What a SuperLink is told, before one is started."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr", reason="needs the extra deploy")

import tomllib

from recbole_fedras.deploy.superlink import SuperLink, quoted


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_toml(text):
    assert tomllib.loads(f"config = {quoted(text)}") == {"config": text}


@pytest.mark.parametrize("secure", [True, False])
def test_flowers_command_line_finds_it(tmp_path, secure):
    (tmp_path / "ca.crt").touch()
    keys = tmp_path if secure else None
    link = SuperLink(tmp_path, "0.0.0.0", 8123, keys)  # noqa: S104
    link._write_connection()
    config = tomllib.loads((tmp_path / "flower" / "config.toml").read_text())
    here = config["superlink"][config["superlink"]["default"]]
    trust = {"root-certificates": str(tmp_path / "ca.crt")}
    assert here == {"address": "127.0.0.1:8123"} | (
        trust if secure else {"insecure": True}
    )


def test_without_keys_nodes_have_none_and_with_them_all_have(tmp_path):
    secure = SuperLink(tmp_path, "127.0.0.1", 1, tmp_path)._arguments()
    assert "--enable-supernode-auth" in secure
    assert "--insecure" not in secure
    assert "--insecure" in SuperLink(tmp_path, "127.0.0.1", 1, None)._arguments()
