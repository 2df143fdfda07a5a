"""Keys, masks, shares and sealed notes, all made by kept libraries of cryptography."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

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


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes | None:
    """Invert :func:`seal`; None if it is not what was sealed."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, about)
    except (InvalidTag, ValueError):
        return None


def share(seed: bytes, threshold: int, n: int) -> list[bytes]:
    """Split a seed into n shares, of which so many restore it and fewer say nothing."""
    return [part for _, part in Shamir.split(threshold, n, seed, ssss=False)]


#: Choices of shares that are tried. Of 16 shares, of which 9 restore a seed, one that
#: is wrong is always found, and so are three.
TRIES = 128


def restore(
    shares: Mapping[int, bytes], threshold: int, fits: Callable[[bytes], bool]
) -> tuple[bytes | None, list[int]]:
    """Return the seed that is wanted, of shares of which some may be wrong.

    Parameters
    ----------
    shares : mapping of int to bytes
        By their places.
    threshold : int
        Shares that restore a seed.
    fits : callable
        Whether a seed is the one that is wanted.

    Returns
    -------
    seed : bytes or None
        None if no choice of shares gives it.
    wrong : list of int
        Places of wrong shares; not looked for if the first choice fits.
    """
    places = sorted(shares)
    chosen = places[:threshold]
    for _ in range(TRIES):
        seed = _combined(shares, chosen)
        if fits(seed):
            break
        chosen = secrets.SystemRandom().sample(places, threshold)
    else:
        return None, []
    if chosen == places[:threshold]:
        return seed, []
    rest = [place for place in places if place not in chosen]
    # With all but one of the chosen, a sound share restores the seed as well.
    return seed, [at for at in rest if _combined(shares, [*chosen[1:], at]) != seed]


def _combined(shares: Mapping[int, bytes], places: list[int]) -> bytes:
    return Shamir.combine([(1 + at, shares[at]) for at in places], ssss=False)
