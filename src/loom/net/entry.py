"""How a connection becomes a link: the handshake, and, where either end wants the link encrypted, TLS and the same
handshake once more inside.

The first handshake keeps strangers away from TLS. The second one ties role and version to the encrypted channel, so
that whoever sits in between cannot join two connections of the same user.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from loom.errors import ConnectError, LoomError
from loom.limits import HANDSHAKE_TIMEOUT_S
from loom.net.greeting import Greeting
from loom.net.sockets import address_host, address_text, this_machine
from loom.net.threaded import ThreadedTransport
from loom.net.trust import Trust
from loom.wire.handshake import Accepting, Connecting, Handshake, Role, place_of

_BULK_ROLES: Final[tuple[Role, ...]] = ("data", "objects")


class Entry:
    """One connection on its way. `greet` is its first protocol; exactly one of `established` and `refused` follows."""

    def __init__(
        self,
        trust: Trust,
        role: Role,
        side: type[Accepting] | type[Connecting],
        established: Callable[["Entry", Greeting], None],
        refused: Callable[["Entry", ConnectError], None],
        proven: Callable[["Entry"], None] | None = None,
    ) -> None:
        """`proven` is called when the peer has proven the key and the link is about to be encrypted."""
        self._trust = trust
        self._role: Role = role
        self._side: type[Handshake] = side
        self._established = established
        self._refused = refused
        self._proven = proven
        self._greeting = Greeting(self._begin_outer, self._on_outer, self._on_refused)
        self._task: asyncio.Task[None] | None = None
        self._over = False

    @property
    def peer(self) -> str:
        """Address of the other end, once there is a connection."""
        return self._greeting.peer

    def greet(self) -> Greeting:
        return self._greeting

    def cut(self, reason: str) -> None:
        """End it from outside; `refused` is called with the reason."""
        if self._over:
            return
        if self._task is not None:
            self._task.cancel()
        self._greeting.cut(reason)
        self._refuse(ConnectError(reason))

    def _begin_outer(self, own: Any, peer: Any) -> Handshake:
        ends = address_text(own), address_text(peer)
        place = place_of(this_machine(), *(ends if self._side is Connecting else reversed(ends)))
        return self._trust.handshake(self._side, self._role, self._trust.wish_for(address_host(peer)), place)

    def _on_outer(self, greeting: Greeting) -> None:
        if not greeting.handshake.encrypted:
            self._end()
            self._established(self, greeting)
            return
        assert greeting.transport is not None
        greeting.transport.pause_reading()
        if self._proven is not None:
            self._proven(self)
        self._task = asyncio.get_running_loop().create_task(self._encrypt(greeting.transport, greeting.handshake))

    async def _encrypt(self, plain: asyncio.Transport, outer: Handshake) -> None:
        """Go on with the same socket and another transport."""
        loop = asyncio.get_running_loop()
        accepting = self._side is Accepting
        sock: socket.socket | None = None
        try:
            while plain.get_write_buffer_size():
                await asyncio.sleep(0)
            sock = socket.socket(fileno=os.dup(plain.get_extra_info("socket").fileno()))
            sock.setblocking(False)
            plain.abort()
            context = self._trust.context(accepting=accepting)
            inner = Greeting(self._begin_inner, partial(self._on_inner, outer), self._on_refused)
            inner.peer, self._greeting = self._greeting.peer, inner
            if self._role in _BULK_ROLES:
                transport = ThreadedTransport(sock, context, inner, accepting=accepting)
                sock = None  # which is the transport's
                await transport.start()
            elif accepting:
                await loop.connect_accepted_socket(
                    lambda: inner, sock, ssl=context, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
                )
            else:
                await loop.create_connection(
                    lambda: inner, sock=sock, ssl=context, server_hostname="", ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
                )
        except (OSError, LoomError) as error:
            if sock is not None:
                sock.close()
            gave_up = isinstance(error, ConnectionError | ssl.SSLEOFError) or not str(error)
            reason = "the other end gave it up, and its log may say why" if gave_up else str(error)
            self._refuse(ConnectError(f"the link cannot be encrypted: {reason}"))
        except asyncio.CancelledError:
            if sock is not None:
                sock.close()
            raise
        finally:
            plain.abort()

    def _begin_inner(self, own: Any, peer: Any) -> Handshake:
        return self._trust.handshake(self._side, self._role, "encryption")

    def _on_inner(self, outer: Handshake, greeting: Greeting) -> None:
        if greeting.handshake.peer_role != outer.peer_role:
            assert greeting.transport is not None
            greeting.transport.abort()
            self._refuse(ConnectError("it has changed its role"))
            return
        self._end()
        self._established(self, greeting)

    def _on_refused(self, greeting: Greeting, error: ConnectError) -> None:
        self._refuse(error)

    def _refuse(self, error: ConnectError) -> None:
        if not self._over:
            self._end()
            self._refused(self, error)

    def _end(self) -> None:
        self._over = True
        self._task = None
        self._greeting.let_go()
