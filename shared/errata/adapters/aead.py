"""AES-256-GCM with one key, kept in a file of the data folder.

The nonce is derived from the key, the context and the text, not drawn: the same input is sealed to the same bytes, so
that a replay writes what the first run wrote. What it gives away is only that two inputs of one context are equal.
"""

import hmac
import os
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from errata.errors import Misconfigured

KEY_FILE = "dlq.key"
KEY_BYTES = 32

_VERSION = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16


class Aead:
    """A ``Cipher``: sealed bytes are ``version | nonce | ciphertext and tag``."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise Misconfigured(f"an encryption key has {KEY_BYTES} bytes, not {len(key)}")
        self._aes = AESGCM(_derive(key, b"errata aead encryption"))
        self._nonce_key = _derive(key, b"errata aead nonce")

    @classmethod
    def ephemeral(cls) -> "Aead":
        """With a key that ends with the process: for runs without a data folder."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_folder(cls, folder: Path) -> "Aead":
        """With the key of a data folder, which is made when absent."""
        return cls(read_or_make_key(folder / KEY_FILE))

    def seal(self, plain: bytes, context: bytes) -> bytes:
        framed = len(context).to_bytes(8, "little") + context + plain
        nonce = hmac.digest(self._nonce_key, framed, sha256)[:_NONCE_BYTES]
        return _VERSION + nonce + self._aes.encrypt(nonce, plain, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        if len(sealed) < 1 + _NONCE_BYTES + _TAG_BYTES or sealed[:1] != _VERSION:
            raise ValueError("these bytes were not sealed by errata")
        nonce, rest = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._aes.decrypt(nonce, rest, context)
        except InvalidTag:
            raise ValueError("sealed with another key or for another place, or damaged") from None


def read_or_make_key(path: Path) -> bytes:
    """The key of a file that only its owner may read; makes one when there is none."""
    if not path.exists():
        _make_key(path)
    if path.stat().st_mode & 0o077:
        raise Misconfigured(f"others may read {path.name}; run chmod 600 on it")
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise Misconfigured(f"{path.name} must hold {KEY_BYTES} bytes, it holds {len(key)}; restore it from a backup")
    return key


def _make_key(path: Path) -> None:
    """Write a new key whole or not at all; of two processes that do so at once the first one's stays."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    file = os.open(fresh, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        os.write(file, os.urandom(KEY_BYTES))
        os.fsync(file)
    finally:
        os.close(file)
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(fresh)


def _derive(key: bytes, purpose: bytes) -> bytes:
    return hmac.digest(key, purpose, sha256)
