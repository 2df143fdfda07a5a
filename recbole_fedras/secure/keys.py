"""Keys, masks, shares and sealed notes, all made by kept libraries of cryptography."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from recbole_fedras.errors import PayloadError
from recbole_fedras.secure.fixed_point import Words

#: Bytes of a seed: what Shamir's scheme of pycryptodome shares.
SEED_BYTES = 16

#: Bytes of a public key.
KEY_BYTES = 32


def new_seed() -> bytes:
    """Draw a seed from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def derived(secret: bytes, purpose: bytes) -> bytes:
    """Derive 32 bytes for one purpose."""
    return bytes(HKDF(SHA256(), 32, salt=None, info=purpose).derive(secret))


class KeyPair:
    """A key of X25519 that follows from a seed, so that shares of the seed restore it.

    Parameters
    ----------
    seed : bytes
        Of ``SEED_BYTES``.

    Attributes
    ----------
    public : bytes
        Of ``KEY_BYTES``.
    """

    def __init__(self, seed: bytes) -> None:
        private = derived(seed, b"recbole-fedras x25519")
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def agree(self, other: bytes, purpose: bytes) -> bytes:
        """Return 32 bytes that the two, and nobody else, can find for a purpose.

        Raises
        ------
        PayloadError
            If the other key is none.
        """
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError as error:
            raise PayloadError(f"not a public key: {error}") from error
        return derived(shared, purpose)


def mask(key: bytes, n: int) -> Words:
    """Expand 32 bytes to n words, by ChaCha20. A key must serve once."""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * n)), "<u4")


def seal(key: bytes, note: bytes, about: bytes) -> bytes:
    """Encrypt and authenticate a note; the key must serve once."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), note, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Invert :func:`seal`.

    Raises
    ------
    PayloadError
        If it is not what was sealed.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, about)
    except (InvalidTag, ValueError) as error:
        raise PayloadError("a sealed note has been changed") from error


def share(seed: bytes, threshold: int, n: int) -> list[bytes]:
    """Split a seed into n shares, of which so many restore it and fewer say nothing."""
    return [part for _, part in Shamir.split(threshold, n, seed, ssss=False)]


def restore(shares: Mapping[int, bytes]) -> bytes:
    """Return the seed of shares by their places, as many as the threshold."""
    parts = [(1 + place, part) for place, part in shares.items()]
    return Shamir.combine(parts, ssss=False)
