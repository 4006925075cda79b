"""Serves the objects that a process holds, on a TCP port and on a handover socket."""

import asyncio
import logging
import secrets
import socket
from typing import Final

from loom.errors import ConnectError
from loom.messages import DataRequest
from loom.net.greeting import HalfOpen
from loom.net.link import Link, LinkHandler
from loom.net.listener import Listener, listen
from loom.net.objects.handover import HandoverGreeting, HandoverLink, handover_place, handover_socket, handover_text
from loom.net.objects.service import BulkService, HandoverService, Held, Lookup, Scope
from loom.net.sockets import is_own_user
from loom.net.trust import Trust
from loom.wire.codec import Decoder
from loom.wire.handshake import Accepting, Role

__all__ = ["Held", "Lookup", "ObjectServer"]

_log = logging.getLogger(__name__)

_BACKLOG: Final = 128
_ACCEPT_PAUSE_S: Final = 1.0  # after a failure to accept (no more open files allowed, as a rule)


class ObjectServer:
    """Gives what `lookup` finds to whoever proves the key, and shows a ticket for the session of what he asks for:
    of the server that `belong_to` has named.
    """

    def __init__(self, trust: Trust, lookup: Lookup) -> None:
        self._trust = trust
        self._lookup = lookup
        self._half_open = HalfOpen()
        self._links: set[Link | HandoverLink] = set()
        self._listener: Listener | None = None
        self._handover: socket.socket | None = None
        self._handover_name = ""
        self._told = ""  # of it, to others
        self._server: int | None = None

    def belong_to(self, server: int) -> None:
        """The objects are this server's from now on. Links that were opened for those of another one are ended."""
        if server != self._server:
            self._server = server
            self._end_links("another server")

    async def start(self, host: str, port: int = 0, host_id: str = "") -> tuple[int, str]:
        """Listen on that port of `host` (0: any free one); the port, and what others are told of the handover socket.

        Raises LoomError.
        """
        self._listener = await listen(host, port, self._trust, self, role="objects", port_option="--object-port")
        name = self._handover_name = f"loom-{secrets.token_hex(16)}"
        self._told = handover_text(name, host_id)
        self._handover = handover_socket()
        self._handover.bind("\0" + name)
        self._handover.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(self._handover.fileno(), self._accept)
        return self._listener.port, self._told

    def close(self) -> None:
        """Stop at once; transfers under way fail at the other end."""
        if self._listener is not None:
            self._listener.close()
        if self._handover is not None:
            asyncio.get_running_loop().remove_reader(self._handover.fileno())
            self._handover.close()
            self._handover = None
        self._half_open.close()
        self._end_links("closed")

    def _end_links(self, reason: str) -> None:
        for link in list(self._links):
            link.abort(reason)

    def on_link(self, link: Link, role: Role) -> tuple[Decoder, LinkHandler]:
        """Called by the listener."""
        self._links.add(link)
        return Decoder(DataRequest), BulkService(self._lookup, Scope(self._ticket_of, self._told), self._links.discard)

    def _ticket_of(self, session: int) -> bytes | None:
        return self._trust.ticket(self._server, session) if self._server is not None else None

    def _accept(self) -> None:
        assert self._handover is not None
        try:
            sock, _ = self._handover.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _log.error("cannot accept a handover link: %s", error)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._handover.fileno())
            loop.call_later(_ACCEPT_PAUSE_S, self._accept_again)
            return
        sock.setblocking(False)
        if not is_own_user(sock):
            _log.warning("refused a handover link: it is another user's")
            sock.close()
            return
        handshake = self._trust.handshake(Accepting, "objects", "not in between", handover_place(self._handover_name))
        self._half_open.enter(HandoverGreeting(sock, handshake, self._on_established, self._on_refused))

    def _accept_again(self) -> None:
        if self._handover is not None:
            asyncio.get_running_loop().add_reader(self._handover.fileno(), self._accept)

    def _on_established(self, greeting: HandoverGreeting, sock: socket.socket) -> None:
        self._half_open.leave(greeting)
        service = HandoverService(self._lookup, Scope(self._ticket_of, self._told), self._links.discard)
        self._links.add(HandoverLink(sock, "a process of this host", Decoder(DataRequest), service))

    def _on_refused(self, greeting: HandoverGreeting, error: ConnectError) -> None:
        self._half_open.leave(greeting)
        _log.warning("refused a handover link: %s", error)
