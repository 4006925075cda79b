"""Tickets: what lets a data link ask for the objects of one session, or, a worker's, for those of all.

The server gives each client that of its session; workers, which know the server's number as clients do not, check them
and make their own. So objects that have the same numbers at two servers, or in two sessions, are never mixed up. This
guards against accident: who knows the key may run code as the user anyway.
"""

import hmac
import struct
from typing import Final

ALL_SESSIONS: Final = 0
_PLACE: Final = struct.Struct("<QQ")


def ticket(key: bytes, server: int, session: int) -> bytes:
    """HMAC-SHA-256 with the key over the numbers of the server and the session."""
    return hmac.digest(key, b"loom objects\0" + _PLACE.pack(server, session), "sha256")
