"""The time of a connection before its peer has proven the key, and the bound on how many may be in it."""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

from loom.errors import ConnectError
from loom.limits import HANDSHAKE_TIMEOUT_S, MAX_HALF_OPEN_LINKS
from loom.net.sockets import address_host, address_text, forget_protocol, is_loopback
from loom.wire.handshake import Handshake


class Greeting(asyncio.BufferedProtocol):
    """Performs one handshake on a stream transport, then calls `established` or `refused`, exactly once.

    Never reads more than the handshake misses, so that whatever follows is still in the socket when `established`
    puts another protocol in this one's place.
    """

    handshake: Handshake
    """From `connection_made` on."""

    def __init__(
        self,
        begin: Callable[[Any, Any], Handshake],
        established: Callable[["Greeting"], None],
        refused: Callable[["Greeting", ConnectError], None],
    ) -> None:
        """`begin` makes the handshake, from the addresses of this end and of the other one."""
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self._is_remote = False
        self._begin = begin
        self._established = established
        self._refused = refused
        self._over = False
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        self.peer = address_text(address)
        if self._over:
            self.transport.abort()
            return
        self._is_remote = not is_loopback(address_host(address))
        self.handshake = self._begin(transport.get_extra_info("sockname"), address)
        self._say()

    def get_buffer(self, sizehint: int) -> bytearray:
        self._buffer = bytearray(self.handshake.missing)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._over:
            return
        try:
            self.handshake.receive(bytes(self._buffer[:nbytes]))
        except ConnectError as error:
            self._say()
            assert self.transport is not None
            self.transport.close()
            self._refuse(error)
            return
        self._say()
        if self.handshake.established:
            self._over = True
            self._established(self)

    @property
    def is_exposed(self) -> bool:
        """The link goes to another machine, or to something in between, which sees what it carries."""
        return (self._is_remote or self.handshake.is_relayed) and not self.handshake.encrypted

    def connection_lost(self, exc: Exception | None) -> None:
        if self.transport is not None:
            forget_protocol(self.transport)
        self._refuse(ConnectError("it closed the connection instead of proving that it is a Loom peer"))

    def cut(self, reason: str) -> None:
        """End it from outside; `refused` is called with the reason."""
        if self.transport is not None:
            self.transport.abort()
        self._refuse(ConnectError(reason))

    def let_go(self) -> None:
        """It is over, and calls nobody any more. (In a server, which collects no circles, one would stay for ever.)"""
        self._over = True
        self._begin, self._established, self._refused = _no_handshake, _tell_nobody, _tell_nobody

    def _say(self) -> None:
        outgoing = self.handshake.take_outgoing()
        if outgoing:
            assert self.transport is not None
            self.transport.write(outgoing)

    def _refuse(self, error: ConnectError) -> None:
        if not self._over:
            self._over = True
            self._refused(self, error)


def _no_handshake(own: Any, peer: Any) -> Handshake:
    raise AssertionError("the connection is over")


def _tell_nobody(*news: object) -> None:
    pass


class Stranger(Protocol):
    """A connection whose peer has proven nothing yet."""

    def cut(self, reason: str) -> None: ...


class HalfOpen:
    """The strangers of one listening socket: each has a bounded time, and at the bound on their number the oldest is
    cut, so that a newcomer who can prove the key always gets in.
    """

    def __init__(self, timeout_s: float = HANDSHAKE_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._timers: dict[Stranger, asyncio.TimerHandle] = {}
        self._unproven: dict[Stranger, None] = {}  # oldest first

    def enter(self, stranger: Stranger) -> None:
        if len(self._unproven) >= MAX_HALF_OPEN_LINKS:
            self._cut(next(iter(self._unproven)), "too many connections that have not proven the key")
        loop = asyncio.get_running_loop()
        story = f"no handshake within {self._timeout_s:g} s"
        self._timers[stranger] = loop.call_later(self._timeout_s, self._cut, stranger, story)
        self._unproven[stranger] = None

    def proven(self, stranger: Stranger) -> None:
        """It has the key, and still has to encrypt its link: no stranger can push it out, time still can."""
        self._unproven.pop(stranger, None)

    def leave(self, stranger: Stranger) -> None:
        """It is established, refused or gone."""
        self._unproven.pop(stranger, None)
        timer = self._timers.pop(stranger, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        for stranger in list(self._timers):
            self._cut(stranger, "closed")

    def __len__(self) -> int:
        return len(self._timers)

    def _cut(self, stranger: Stranger, reason: str) -> None:
        self.leave(stranger)
        stranger.cut(reason)
