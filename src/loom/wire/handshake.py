"""How two ends prove to each other that they know the user's key and run the same build; without any I/O.

    connecting                                     accepting
    hello (magic, role, version, nonce)   ->
                                          <-       hello, place, proof
    verdict, proof                        ->
                                          <-       verdict

A proof is an HMAC-SHA-256 with the key over all that was said before and the side that gives it, so that it cannot be
replayed (nonces), reflected (side) or used in another role or version. Versions are compared before proofs: an end that
sees another version says hello and leaves, so that both can name the two versions. The layout of the hello may never
change; that of the rest may change with the version. Every part has a fixed size and nothing is decoded before the
proof has been checked.

Beside the role a hello says what its end wishes for: that the link is encrypted, or that it is where somebody sits in
between, or nothing. The place, which are the machine and the two addresses of the connection as the accepting end sees
them, tells whether somebody does: who has to pass a handshake on makes a second connection, on this machine from
another port. The link is encrypted where the stronger one of the two wishes has it so: TLS follows, and then the same
handshake inside of it (`net.entry`). Nobody in between can change that unseen.
"""

import hashlib
import hmac
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Final, Literal

import loom.messages
from loom import __version__
from loom.errors import ConnectError, KeyRefused, VersionMismatch
from loom.limits import MAX_HANDSHAKE_BYTES

Wish = Literal["none", "not in between", "encryption"]
"""What an end asks for: nothing, that the link is encrypted where somebody sits in between, or that in any case."""

Role = Literal["client", "worker", "server", "data", "objects"]
_Part = Literal["hello", "proof", "verdict"]

COUNTERPART: Final[dict[Role, Role]] = {"client": "server", "worker": "server", "data": "objects"}

VERSION: Final = f"{__version__}+{hashlib.sha256(Path(loom.messages.__file__).read_bytes()).hexdigest()[:8]}"
"""Build of this end. Its second part changes with every message, so that a development build is never mistaken."""

NONCE_BYTES: Final = 32
_MAGIC: Final = b"\x93LOOM\r\n\x1a"
_HELLO: Final = struct.Struct("<8sB39s32s")
_WISH_SHIFT: Final = 6  # above the role, in one byte
_PROOF_BYTES: Final = 32
_NO_PROOF: Final = bytes(_PROOF_BYTES)
_KEY_PROVEN: Final = b"\x01"
_KEY_REFUSED: Final = b"\x02"
_IN_BETWEEN: Final = b"\x03"  # proven, and the places differ
PLACE_BYTES: Final = 16
_WISHES: Final[tuple[Wish, ...]] = ("none", "not in between", "encryption")  # rising
_ROLES: Final[tuple[Role, ...]] = ("client", "worker", "server", "data", "objects")
_OTHER_KEY: Final = "the two ends do not have the same key (see loom key --help)"
assert _HELLO.size + _PROOF_BYTES <= MAX_HANDSHAKE_BYTES
assert len(VERSION) <= 39


class Handshake(ABC):
    """One end of a handshake: `Connecting` or `Accepting`.

    Feed it at most `missing` bytes at a time, send what `take_outgoing` gives after each call (after an error too: it
    tells the other end why). `receive` raises ConnectError, KeyRefused or VersionMismatch; then it is over.
    """

    def __init__(
        self,
        key: bytes,
        role: Role,
        nonce: bytes,
        version: str = VERSION,
        *,
        wish: Wish = "none",
        place: bytes = b"",
    ) -> None:
        """`place`: from `place_of`; empty where nobody can be in between."""
        assert len(nonce) == NONCE_BYTES
        self.peer_role: Role | None = None  # known, but not proven, before the end
        self.encrypted = False
        """Once it is established: whether the link is to be."""
        self.is_relayed = False
        """Likewise: somebody sits in between, as the places say."""
        self.established = False
        self._place = place
        self._wish = _WISHES.index(wish)  # from the other hello on the stronger one of both
        self._said = b""  # what the proofs are over
        self._key = key
        self._role: Role = role
        self._version = version
        role_byte = _ROLES.index(role) | self._wish << _WISH_SHIFT
        self._own_hello = _HELLO.pack(_MAGIC, role_byte, version.encode(), nonce)
        self._received = bytearray()
        self._outgoing = bytearray()
        self._wanted = _HELLO.size
        self._awaited: _Part = "hello"  # not its method: that would be a circle, which a server does not collect
        self._begin()

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
        if self._awaited == "hello":
            self._check_magic()
        while not self.established and len(self._received) >= self._wanted:
            part = bytes(self._received[: self._wanted])
            del self._received[: self._wanted]
            match self._awaited:
                case "hello":
                    self._on_hello(part)
                case "proof":
                    self._on_proof(part)
                case "verdict":
                    self._on_verdict(part)
        if self.established and self._received:
            raise ConnectError("it sent more than a handshake")

    def _check_magic(self) -> None:
        start = bytes(self._received[: len(_MAGIC)])
        if not _MAGIC.startswith(start):
            raise ConnectError(f"it is not a Loom peer (it says {start!r})")

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _on_hello(self, hello: bytes) -> None: ...

    @abstractmethod
    def _on_proof(self, part: bytes) -> None: ...

    def _on_verdict(self, verdict: bytes) -> None:
        raise AssertionError("this end gives it")

    def _read_hello(self, hello: bytes) -> None:
        """Check version and role of the other end."""
        _, role_byte, version, _ = _HELLO.unpack(hello)
        theirs = version.rstrip(b"\0").decode("latin-1")
        if theirs != self._version:
            if not theirs.isprintable():  # damaged on its way, or no Loom at all: another try may do better
                raise ConnectError(f"it is not a Loom peer (its version is {theirs!a})")
            raise VersionMismatch(f"this end runs Loom {self._version}, the other end {theirs}")
        role, wish = role_byte & (1 << _WISH_SHIFT) - 1, role_byte >> _WISH_SHIFT
        self.peer_role = _ROLES[role] if role < len(_ROLES) else None
        self._wish = max(self._wish, wish)
        pair = (self._role, self.peer_role)
        if pair not in COUNTERPART.items() and pair[::-1] not in COUNTERPART.items():
            raise ConnectError(f"it is a Loom {self.peer_role}, which is nothing that a {self._role} talks to")

    def _establish(self, is_relayed: bool) -> None:
        wish = _WISHES[min(self._wish, len(_WISHES) - 1)]
        self.is_relayed = is_relayed
        self.encrypted = wish == "encryption" or (wish == "not in between" and is_relayed)
        self.established = True

    def _expect(self, wanted: int, awaited: _Part) -> None:
        self._wanted, self._awaited = wanted, awaited


class Connecting(Handshake):
    """The end that opened the connection; speaks first."""

    def _begin(self) -> None:
        self._outgoing += self._own_hello

    def _on_hello(self, hello: bytes) -> None:
        self._read_hello(hello)
        self._said = self._own_hello + hello
        self._expect(PLACE_BYTES + _PROOF_BYTES, "proof")

    def _on_proof(self, part: bytes) -> None:
        place, proof = part[:PLACE_BYTES], part[PLACE_BYTES:]
        self._said += place
        if not hmac.compare_digest(proof, _proof(self._key, b"accepting", self._said)):
            self._outgoing += _KEY_REFUSED + _NO_PROOF
            raise KeyRefused(_OTHER_KEY)
        self.is_relayed = bool(self._place) and place != self._place
        verdict = _IN_BETWEEN if self.is_relayed else _KEY_PROVEN
        self._outgoing += verdict + _proof(self._key, b"connecting", self._said + verdict)
        self._expect(len(_KEY_PROVEN), "verdict")

    def _on_verdict(self, verdict: bytes) -> None:
        if verdict != _KEY_PROVEN:
            raise KeyRefused(_OTHER_KEY)
        self._establish(self.is_relayed)


class Accepting(Handshake):
    """The end that listened."""

    def _begin(self) -> None:
        pass  # it is the other one's turn

    def _on_hello(self, hello: bytes) -> None:
        self._outgoing += self._own_hello
        self._read_hello(hello)
        place = self._place or bytes(PLACE_BYTES)
        self._said = hello + self._own_hello + place
        self._outgoing += place + _proof(self._key, b"accepting", self._said)
        self._expect(len(_KEY_PROVEN) + _PROOF_BYTES, "proof")

    def _on_proof(self, part: bytes) -> None:
        verdict, proof = part[:1], part[1:]
        expected = _proof(self._key, b"connecting", self._said + verdict)
        if verdict not in (_KEY_PROVEN, _IN_BETWEEN) or not hmac.compare_digest(proof, expected):
            self._outgoing += _KEY_REFUSED
            raise KeyRefused(_OTHER_KEY)
        self._outgoing += _KEY_PROVEN
        self._establish(verdict == _IN_BETWEEN)


def place_of(machine: str, connecting: str, accepting: str) -> bytes:
    """PLACE_BYTES from the addresses (with ports) of both ends, as one of them sees them, and the machine it is on."""
    return hashlib.sha256(f"{machine} {connecting} {accepting}".encode()).digest()[:PLACE_BYTES]


def _proof(key: bytes, side: bytes, said: bytes) -> bytes:
    return hmac.digest(key, b"loom " + side + b"\0" + said, "sha256")
