"""A link: an established connection that carries messages (and bulk data) both ways, in order.

What the messages mean is its handler's business. Whatever goes wrong on a link ends that link only.
"""

import asyncio
import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from loom.errors import ConnectError, KeyRefused, ProtocolError, VersionMismatch
from loom.limits import CONNECT_TIMEOUT_S, LINK_FLUSH_TIMEOUT_S, LINK_HIGH_WATER_BYTES, LINK_LOW_WATER_BYTES
from loom.messages import Message
from loom.net.entry import Entry
from loom.net.greeting import Greeting
from loom.net.sockets import Address, address_host, forget_protocol, resolve, tcp_socket
from loom.net.trust import Trust
from loom.wire.codec import Decoder, encode
from loom.wire.framing import FrameReader
from loom.wire.handshake import Connecting, Role

_log = logging.getLogger(__name__)

SIGNS_OF_LIFE: Final = 4
"""How many of them an end of a link sends in the time in which it has to be heard."""

_SIGN_OF_LIFE: Final = bytes(encode([]))


class LinkHandler(Protocol):
    """Who is told what happens on links, on the loop's thread."""

    def on_messages(self, link: "Link", messages: list[Message]) -> None:
        """One frame arrived, with one message at least. A ProtocolError raised here closes the link; any other
        exception is a fault of ours, is logged as such and closes it too.
        """

    def on_closed(self, link: "Link", reason: str) -> None:
        """Nothing comes any more. Called once for every link, for those closed from this end too, never from inside
        `close`.
        """

    def on_full(self, link: "Link") -> None:
        """More than LINK_HIGH_WATER_BYTES wait for the peer. May come from inside `send`, which goes on working."""

    def on_drained(self, link: "Link") -> None:
        """Fewer than LINK_LOW_WATER_BYTES wait again."""


class Link(asyncio.BufferedProtocol):
    """One end of an established link; `connect` and `listen` make them."""

    def __init__(self, transport: asyncio.Transport, peer: str, role: Role, *, encrypted: bool = False) -> None:
        self.peer = peer
        """Role and address of the other end, for logs."""
        self.role: Role = role
        """Role of the other end."""
        self.encrypted = encrypted
        self.own_host = address_host(transport.get_extra_info("sockname"))
        """The address of this end."""
        self.full = False
        """Between `on_full` and `on_drained`."""
        self.closed = False
        """`close` was called or the connection is gone: what is sent now is dropped."""
        self.received_bytes = 0
        """Grows with every byte that arrives, bulk included."""
        self._transport = transport
        self._decode: Callable[[bytes | memoryview], list[Message]]  # these two from `attach` on
        self._handler: LinkHandler
        self._reader = FrameReader()
        self._reason: str | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self._life_timer: asyncio.TimerHandle | None = None
        self._said = False  # something was sent since the last tick of that timer
        self._heard_bytes = 0
        self._quiet_ticks = 0

    def attach(self, decoder: Decoder, handler: LinkHandler) -> None:
        """Begin to deliver what arrives."""
        self._decode = decoder.decode
        self._handler = handler
        self._transport.set_protocol(self)
        self._transport.set_write_buffer_limits(LINK_HIGH_WATER_BYTES, LINK_LOW_WATER_BYTES)

    def send(self, messages: Sequence[Message]) -> None:
        """Send the messages in one frame. On a closed link they are dropped: `on_closed` has told or will tell."""
        if not self.closed:
            self._said = True
            self._transport.write(encode(messages))

    @property
    def waiting_bytes(self) -> int:
        """What was sent and the peer has not taken yet."""
        return self._transport.get_write_buffer_size()

    def write(self, frames: bytes | bytearray | memoryview) -> None:
        """Send what is framed already; a memoryview must not change until it is sent."""
        if not self.closed:
            self._transport.write(frames)

    def keep_alive(self, say_every_s: float, silence_s: float) -> None:
        """Send a sign of life where nothing else was sent for `say_every_s`; a peer that is silent for `silence_s` is
        dead, and the link is aborted. Called again it changes the times. Not for links that carry bulk data.

        What is counted is ticks of the loop without a byte: a process that was stopped itself finds one tick when it
        wakes, and then what its peers have said meanwhile. So it may take up to `say_every_s` longer.
        """
        if self.closed:
            return
        if self._life_timer is not None:
            self._life_timer.cancel()
        else:  # from now on silence alone tells; a network may be away for as long as that
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        self._quiet_ticks = 0
        self._life_timer = asyncio.get_running_loop().call_later(say_every_s, self._tick, say_every_s, silence_s)

    def _tick(self, say_every_s: float, silence_s: float) -> None:
        self._quiet_ticks += 1
        if self.received_bytes != self._heard_bytes:
            self._heard_bytes = self.received_bytes
            self._quiet_ticks = 0
        elif self._quiet_ticks >= math.ceil(silence_s / say_every_s):
            self.abort(f"nothing heard for {silence_s:g} s")
            return
        if not self._said and not self.full:
            self._transport.write(_SIGN_OF_LIFE)
        self._said = False
        self._life_timer = asyncio.get_running_loop().call_later(say_every_s, self._tick, say_every_s, silence_s)

    def land(self, buffer: memoryview, landed: Callable[[], None]) -> None:
        """Let the bulk data that comes next fill `buffer` (not empty), then call `landed`; called in `on_messages`."""
        self._reader.land(buffer, landed)

    def close(self, reason: str = "closed by this end") -> None:
        """Send what waits, then close; messages that arrive meanwhile are dropped."""
        if self.closed:
            return
        self.closed = True
        self._reason = reason
        self._end_life()
        if not self._transport.is_closing():  # asyncio's TLS takes a second time ill
            self._transport.close()
        self._flush_timer = asyncio.get_running_loop().call_later(LINK_FLUSH_TIMEOUT_S, self._transport.abort)

    def abort(self, reason: str) -> None:
        """Close at once; what waits is dropped."""
        if not self.closed:
            self.closed = True
            self._reason = reason
        self._end_life()
        self._transport.abort()

    def _end_life(self) -> None:
        if self._life_timer is not None:
            self._life_timer.cancel()

    # -- called by the transport --------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.received_bytes += nbytes
        reader = self._reader
        reader.received(nbytes)
        try:
            while not self.closed and (frame := reader.next_frame()) is not None:
                messages = self._decode(frame)
                if messages:  # else a sign of life
                    self._handler.on_messages(self, messages)
        except ProtocolError as error:
            reason = f"protocol error: {error}"
            _log.warning("closing the link to %s: %s", self.peer, reason)
            self.abort(reason)

    def pause_writing(self) -> None:
        self.full = True
        self._handler.on_full(self)

    def resume_writing(self) -> None:
        self.full = False
        self._handler.on_drained(self)

    def connection_lost(self, exc: Exception | None) -> None:
        forget_protocol(self._transport)
        self.closed = True
        self._end_life()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        self._handler.on_closed(self, self._reason or (str(exc) if exc else "closed by the other end"))


async def connect(
    host: str,
    port: int,
    role: Role,
    trust: Trust,
    decoder: Decoder,
    handler: LinkHandler,
    timeout_s: float = CONNECT_TIMEOUT_S,
    reach_s: float | None = None,
) -> Link:
    """Open a link as `role` and prove the key; every address of the name is tried, all within `timeout_s`. `reach_s`:
    how long the kernel of the other machine may take to answer, of that time.

    The handler may be called before this returns. Raises KeyRefused, VersionMismatch, or ConnectError naming host,
    port and what went wrong.
    """
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await resolve(host, port)
            failures: list[str] = []
            for address in addresses:
                try:
                    async with asyncio.timeout(timeout_s / len(addresses)):
                        return await _open(address, trust, role, decoder, handler, reach_s)
                except VersionMismatch as error:
                    raise VersionMismatch(f"{where}: {error}") from None
                except KeyRefused as error:
                    own = f"; the key of this end: {trust.key_text}" if trust.key_text else ""
                    raise KeyRefused(f"{where}: {error}{own}") from None
                except ConnectError as error:
                    failures.append(str(error))
                except TimeoutError:
                    failures.append("no answer")
                except OSError as error:
                    failures.append(os.strerror(error.errno) if error.errno else str(error))
    except TimeoutError:
        raise ConnectError(f"{where}: no answer within {timeout_s:g} s") from None
    raise ConnectError(f"cannot connect to {where}: {'; '.join(dict.fromkeys(failures))}")


def link_of(greeting: Greeting) -> Link:
    """What an established greeting becomes; to be attached before the loop runs on."""
    assert greeting.transport is not None
    handshake = greeting.handshake
    role = handshake.peer_role
    assert role is not None
    if greeting.is_exposed and role in ("client", "worker", "server"):  # of links for data there are many
        _log.warning("INSECURE: the link to the %s at %s is not encrypted", role, greeting.peer)
    return Link(greeting.transport, f"{role} {greeting.peer}", role, encrypted=handshake.encrypted)


async def _open(
    address: Address, trust: Trust, role: Role, decoder: Decoder, handler: LinkHandler, reach_s: float | None
) -> Link:
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Link] = loop.create_future()

    def established(_: Entry, greeting: Greeting) -> None:
        link = link_of(greeting)
        link.attach(decoder, handler)
        if opened.done():
            link.abort("given up")
        else:
            opened.set_result(link)

    def refused(_: Entry, error: ConnectError) -> None:
        if not opened.done():
            opened.set_exception(error)

    entry = Entry(trust, role, Connecting, established, refused)
    family, target = address
    sock = tcp_socket(family)
    try:
        async with asyncio.timeout(reach_s):
            await loop.sock_connect(sock, target)
        await loop.create_connection(entry.greet, sock=sock)
        return await opened
    except BaseException:  # a time limit's cancellation above all
        if opened.done() and not opened.cancelled() and opened.exception() is None:
            opened.result().abort("given up")  # cancelled in the very turn that established it
        opened.cancel()
        if entry.greet().transport is None:
            sock.close()
        entry.cut("given up")
        raise
