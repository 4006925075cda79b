"""How two ends prove to each other that they know the user's key and run the same build; without any I/O.

    connecting                                     accepting
    hello (magic, role, version, nonce)   ->
                                          <-       hello, proof
    verdict, proof                        ->
                                          <-       verdict

A proof is an HMAC-SHA-256 with the key over both hellos and the side that gives it, so that it cannot be replayed
(nonces), reflected (side) or used in another role or version. Versions are compared before proofs: an end that sees
another version says hello and leaves, so that both can name the two versions. The layout of the hello may never
change; that of the rest may change with the version. Every part has a fixed size and nothing is decoded before the
proof has been checked.
"""

import hashlib
import hmac
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import loom.messages
from loom import __version__
from loom.errors import ConnectError, KeyRefused, VersionMismatch
from loom.limits import MAX_HANDSHAKE_BYTES

Role = Literal["client", "worker", "server", "data", "objects"]

COUNTERPART: Final[dict[Role, Role]] = {"client": "server", "worker": "server", "data": "objects"}

VERSION: Final = f"{__version__}+{hashlib.sha256(Path(loom.messages.__file__).read_bytes()).hexdigest()[:8]}"
"""Build of this end. Its second part changes with every message, so that a development build is never mistaken."""

NONCE_BYTES: Final = 32
_MAGIC: Final = b"\x93LOOM\r\n\x1a"
_HELLO: Final = struct.Struct("<8sB39s32s")
_PROOF_BYTES: Final = 32
_NO_PROOF: Final = bytes(_PROOF_BYTES)
_KEY_PROVEN: Final = b"\x01"
_KEY_REFUSED: Final = b"\x02"
_ROLES: Final[tuple[Role, ...]] = ("client", "worker", "server", "data", "objects")
_OTHER_KEY: Final = "the two ends do not have the same key"
assert _HELLO.size + _PROOF_BYTES <= MAX_HANDSHAKE_BYTES
assert len(VERSION) <= 39


class Handshake(ABC):
    """One end of a handshake: `Connecting` or `Accepting`.

    Feed it at most `missing` bytes at a time, send what `take_outgoing` gives after each call (after an error too: it
    tells the other end why). `receive` raises ConnectError, KeyRefused or VersionMismatch; then it is over.
    """

    def __init__(self, key: bytes, role: Role, nonce: bytes, version: str = VERSION) -> None:
        assert len(nonce) == NONCE_BYTES
        self.peer_role: Role | None = None  # known, but not proven, before the end
        self.established = False
        self._key = key
        self._role: Role = role
        self._version = version
        self._own_hello = _HELLO.pack(_MAGIC, _ROLES.index(role), version.encode(), nonce)
        self._received = bytearray()
        self._outgoing = bytearray()
        self._wanted = _HELLO.size
        self._next_part: Callable[[bytes], None] = self._on_hello

    @property
    def missing(self) -> int:
        """Bytes until the next part of the other end is complete: never read more than these from a stranger."""
        return self._wanted - len(self._received)

    def take_outgoing(self) -> bytes:
        outgoing = bytes(self._outgoing)
        self._outgoing.clear()
        return outgoing

    def receive(self, data: bytes) -> None:
        """Take what arrived, in pieces of any size; several parts at once are fine, bytes past the end are not."""
        self._received += data
        if self._next_part == self._on_hello:
            self._check_magic()
        while not self.established and len(self._received) >= self._wanted:
            part = bytes(self._received[: self._wanted])
            del self._received[: self._wanted]
            self._next_part(part)
        if self.established and self._received:
            raise ConnectError("it sent more than a handshake")

    def _check_magic(self) -> None:
        start = bytes(self._received[: len(_MAGIC)])
        if not _MAGIC.startswith(start):
            raise ConnectError(f"it is not a Loom peer (it says {start!r})")

    @abstractmethod
    def _on_hello(self, hello: bytes) -> None: ...

    def _read_hello(self, hello: bytes) -> None:
        """Check version and role of the other end."""
        _, role, version, _ = _HELLO.unpack(hello)
        theirs = version.rstrip(b"\0").decode("latin-1")
        if theirs != self._version:
            if not theirs.isprintable():  # damaged on its way, or no Loom at all: another try may do better
                raise ConnectError(f"it is not a Loom peer (its version is {theirs!a})")
            raise VersionMismatch(f"this end runs Loom {self._version}, the other end {theirs}")
        self.peer_role = _ROLES[role] if role < len(_ROLES) else None
        pair = (self._role, self.peer_role)
        if pair not in COUNTERPART.items() and pair[::-1] not in COUNTERPART.items():
            raise ConnectError(f"it is a Loom {self.peer_role}, which is nothing that a {self._role} talks to")

    def _expect(self, wanted: int, then: Callable[[bytes], None]) -> None:
        self._wanted, self._next_part = wanted, then


class Connecting(Handshake):
    """The end that opened the connection; speaks first."""

    def __init__(self, key: bytes, role: Role, nonce: bytes, version: str = VERSION) -> None:
        super().__init__(key, role, nonce, version)
        self._outgoing += self._own_hello
        self._hellos = b""

    def _on_hello(self, hello: bytes) -> None:
        self._read_hello(hello)
        self._hellos = self._own_hello + hello
        self._expect(_PROOF_BYTES, self._on_proof)

    def _on_proof(self, proof: bytes) -> None:
        if not hmac.compare_digest(proof, _proof(self._key, b"accepting", self._hellos)):
            self._outgoing += _KEY_REFUSED + _NO_PROOF
            raise KeyRefused(_OTHER_KEY)
        self._outgoing += _KEY_PROVEN + _proof(self._key, b"connecting", self._hellos)
        self._expect(len(_KEY_PROVEN), self._on_verdict)

    def _on_verdict(self, verdict: bytes) -> None:
        if verdict != _KEY_PROVEN:
            raise KeyRefused(_OTHER_KEY)
        self.established = True


class Accepting(Handshake):
    """The end that listened."""

    def __init__(self, key: bytes, role: Role, nonce: bytes, version: str = VERSION) -> None:
        super().__init__(key, role, nonce, version)
        self._hellos = b""

    def _on_hello(self, hello: bytes) -> None:
        self._outgoing += self._own_hello
        self._read_hello(hello)
        self._hellos = hello + self._own_hello
        self._outgoing += _proof(self._key, b"accepting", self._hellos)
        self._expect(len(_KEY_PROVEN) + _PROOF_BYTES, self._on_proof)

    def _on_proof(self, part: bytes) -> None:
        verdict, proof = part[:1], part[1:]
        if verdict != _KEY_PROVEN or not hmac.compare_digest(proof, _proof(self._key, b"connecting", self._hellos)):
            self._outgoing += _KEY_REFUSED
            raise KeyRefused(_OTHER_KEY)
        self._outgoing += _KEY_PROVEN
        self.established = True


def _proof(key: bytes, side: bytes, hellos: bytes) -> bytes:
    return hmac.digest(key, b"loom " + side + b"\0" + hellos, "sha256")
