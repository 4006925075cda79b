"""A secret on its way to one process, by way of others that may look at it.

Who wants it makes a pair of keys and shows the public half; the secret sealed for that opens with the other half only,
which never leaves the process. It is X25519 with a pair made for this one message, HKDF-SHA-256, and ChaCha20-Poly1305.
This keeps the secret from who reads along (logs, dashboards, object stores), not from who may ask for it himself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from loom.errors import LoomError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

_PUBLIC_BYTES: Final = 32
_NONCE: Final = bytes(12)  # each pair of keys makes a key of its own, which seals one message


class Receiver:
    """Of any number of secrets. `public` may be shown to everybody."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # which takes a while

        self._private = X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "<Receiver>"

    def open(self, sealed: bytes) -> bytes:
        """LoomError where it was not sealed for this receiver, or was changed on its way."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        once = sealed[:_PUBLIC_BYTES]
        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(once))
            return _cipher(shared, once, self.public).decrypt(_NONCE, sealed[_PUBLIC_BYTES:], None)
        except (InvalidTag, ValueError):
            raise LoomError("what came is not sealed for this process, or was changed on its way") from None


def seal(public: bytes, secret: bytes) -> bytes:
    """For the receiver of that public half. LoomError where that is none."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    private = X25519PrivateKey.generate()
    once = private.public_key().public_bytes_raw()
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise LoomError("this is no public key to seal anything for") from None
    return once + _cipher(shared, once, public).encrypt(_NONCE, secret, None)


def _cipher(shared: bytes, once: bytes, public: bytes) -> ChaCha20Poly1305:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return ChaCha20Poly1305(HKDF(SHA256(), 32, salt=None, info=b"loom sealed " + once + public).derive(shared))
