"""Accepts connections, and hands out as links those whose peers have proven the key."""

import asyncio
import logging
import socket
from typing import Protocol

from loom.errors import ConnectError
from loom.limits import HANDSHAKE_TIMEOUT_S
from loom.net.entry import Entry
from loom.net.greeting import Greeting, HalfOpen
from loom.net.link import Link, LinkHandler, link_of
from loom.net.sockets import BACKLOG, listening_socket
from loom.net.trust import Trust
from loom.wire.codec import Decoder
from loom.wire.handshake import Accepting, Role

_log = logging.getLogger(__name__)


class LinkAcceptor(Protocol):
    """Who is given the new links of a listener."""

    def on_link(self, link: Link, role: Role) -> tuple[Decoder, LinkHandler]:
        """How to serve this link; `role` is the other end's. Sending and closing are possible already."""


class Listener:
    """A listening port; `listen` makes them."""

    def __init__(self, trust: Trust, handler: LinkAcceptor, role: Role, timeout_s: float) -> None:
        self._trust = trust
        self._handler = handler
        self._role: Role = role
        self._half_open = HalfOpen(timeout_s)
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, sock: socket.socket) -> None:
        self.port = sock.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(self._greet, sock=sock, backlog=BACKLOG)

    def close(self) -> None:
        """Accept nobody any more; links that were handed out stay."""
        if self._server is not None:
            self._server.close()
        self._half_open.close()

    def _greet(self) -> Greeting:
        entry = Entry(
            self._trust, self._role, Accepting, self._on_established, self._on_refused, self._half_open.proven
        )
        self._half_open.enter(entry)
        return entry.greet()

    def _on_established(self, entry: Entry, greeting: Greeting) -> None:
        self._half_open.leave(entry)
        link = link_of(greeting)
        link.attach(*self._handler.on_link(link, link.role))

    def _on_refused(self, entry: Entry, error: ConnectError) -> None:
        self._half_open.leave(entry)
        _log.warning("refused a connection from %s: %s", entry.peer or "a stranger", error)


async def listen(
    host: str,
    port: int,
    trust: Trust,
    handler: LinkAcceptor,
    sock: socket.socket | None = None,
    *,
    role: Role = "server",
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    port_option: str = "-p",
) -> Listener:
    """Listen on `host` and `port` (0: any free one), or on `sock`, which listens already and becomes the listener's.

    Whom it admits follows from its own role: a "server" clients and workers, "objects" data links. Raises LoomError
    where the port cannot be had, and names the option with which another one is chosen.
    """
    listener = Listener(trust, handler, role, handshake_timeout_s)
    await listener.start(sock or await listening_socket(host, port, port_option))
    return listener
