"""What a process proves to others: the user's key. And which of its links are encrypted."""

import os
import secrets
import ssl
from pathlib import Path
from typing import Literal

from loom.errors import LoomError
from loom.net.sockets import is_loopback
from loom.wire.certificates import encryption_context
from loom.wire.handshake import NONCE_BYTES, Handshake, Role, Wish
from loom.wire.keys import key_path, load_key
from loom.wire.tickets import ticket

Encryption = Literal["remote", "always", "never"]
"""Which links this end wants encrypted. One end that wants it suffices.

remote: those to other machines, and those within this one where somebody sits in between; always: all; never: none.
"""


class Trust:
    """`key_file` is where the key is from: the certificate is kept beside it. `is_new`: it was made just now."""

    def __init__(
        self, key: bytes, encryption: Encryption = "remote", key_file: Path | None = None, *, is_new: bool = False
    ) -> None:
        self.encryption: Encryption = encryption
        self.key_text = "" if key_file is None else f"{key_file}{', made just now' if is_new else ''}"
        """Where the key is from, for people."""
        self._key = key
        self._key_file = key_file
        self._contexts: dict[bool, ssl.SSLContext] = {}

    def __repr__(self) -> str:
        return f"<Trust, encryption: {self.encryption}>"

    def handshake(self, side: type[Handshake], role: Role, wish: Wish = "none", place: bytes = b"") -> Handshake:
        """The beginning of one, with a nonce of its own."""
        return side(self._key, role, secrets.token_bytes(NONCE_BYTES), wish=wish, place=place)

    def wish_for(self, peer_host: str) -> Wish:
        """What this end asks for on a link to that address."""
        match self.encryption:
            case "always":
                return "encryption"
            case "never":
                return "none"
            case "remote":
                return "not in between" if is_loopback(peer_host) else "encryption"

    def context(self, *, accepting: bool) -> ssl.SSLContext:
        """For TLS at this end. Raises LoomError where there is no certificate and none can be made."""
        context = self._contexts.get(accepting)
        if context is None:
            context = encryption_context(self._key, self._key_file, accepting=accepting)
            self._contexts[accepting] = context
        return context

    def ticket(self, server: int, session: int) -> bytes:
        return ticket(self._key, server, session)


def find_trust(key_file: str | os.PathLike[str] | None = None, *, tls: bool = False, insecure: bool = False) -> Trust:
    """With the user's key, as `load_key` finds or makes it. `tls`: encrypt always, `insecure`: never ask for it.

    Raises LoomError as `load_key` does, and where both are true.
    """
    if tls and insecure:
        raise LoomError("tls (encrypt everything) and insecure (encrypt nothing) at once: choose one")
    path = key_path(key_file)
    is_new = not path.exists()
    encryption: Encryption = "always" if tls else "never" if insecure else "remote"
    return Trust(load_key(key_file), encryption, path, is_new=is_new)
