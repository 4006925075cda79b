"""Accepts connections, and hands out as links those whose peers have proven the key."""

import asyncio
import logging
import secrets
import socket
from typing import Protocol

from loom.errors import ConnectError
from loom.limits import HANDSHAKE_TIMEOUT_S
from loom.net.greeting import Greeting, HalfOpen
from loom.net.link import Link, LinkHandler, link_of
from loom.net.sockets import listening_socket
from loom.wire.codec import Decoder
from loom.wire.handshake import NONCE_BYTES, Accepting, Role

_log = logging.getLogger(__name__)


class LinkAcceptor(Protocol):
    """Who is given the new links of a listener."""

    def on_link(self, link: Link, role: Role) -> tuple[Decoder, LinkHandler]:
        """How to serve this link; `role` is the other end's. Sending and closing are possible already."""


class Listener:
    """A listening port; `listen` makes them."""

    def __init__(self, key: bytes, handler: LinkAcceptor, role: Role, timeout_s: float) -> None:
        self._key = key
        self._handler = handler
        self._role: Role = role
        self._half_open = HalfOpen(timeout_s)
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, sock: socket.socket) -> None:
        self.port = sock.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(self._greet, sock=sock)

    def close(self) -> None:
        """Accept nobody any more; links that were handed out stay."""
        if self._server is not None:
            self._server.close()
        self._half_open.close()

    def _greet(self) -> Greeting:
        handshake = Accepting(self._key, self._role, secrets.token_bytes(NONCE_BYTES))
        greeting = Greeting(handshake, self._on_established, self._on_refused)
        self._half_open.enter(greeting)
        return greeting

    def _on_established(self, greeting: Greeting) -> None:
        self._half_open.leave(greeting)
        link = link_of(greeting)
        link.attach(*self._handler.on_link(link, link.role))

    def _on_refused(self, greeting: Greeting, error: ConnectError) -> None:
        self._half_open.leave(greeting)
        _log.warning("refused a connection from %s: %s", greeting.peer or "a stranger", error)


async def listen(
    host: str,
    port: int,
    key: bytes,
    handler: LinkAcceptor,
    sock: socket.socket | None = None,
    *,
    role: Role = "server",
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
) -> Listener:
    """Listen on `host` and `port` (0: any free one), or on `sock`, which listens already and becomes the listener's.

    Whom it admits follows from its own role: a "server" clients and workers, "objects" data links. Raises LoomError
    where the port cannot be had.
    """
    listener = Listener(key, handler, role, handshake_timeout_s)
    await listener.start(sock or await listening_socket(host, port))
    return listener
