"""The other ends that the link tests meet: honest ones that record what happens, and raw sockets that misbehave."""

import asyncio
import gc
import secrets
import socket
import threading
from collections.abc import Callable

from loom.messages import ClientToServer, Message
from loom.net.link import Link, LinkHandler
from loom.net.trust import Trust
from loom.wire.codec import Decoder
from loom.wire.handshake import NONCE_BYTES, Connecting, Handshake, Role

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
TRUST = Trust(KEY)


class Record:
    """A handler that keeps everything it is told, and lets a test wait until something is true."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.events: list[str] = []
        self.reason: str | None = None
        self.links: list[Link] = []
        self._changed = asyncio.Event()

    def on_link(self, link: Link, role: Role) -> tuple[Decoder, LinkHandler]:
        self.links.append(link)
        self._changed.set()
        return Decoder(ClientToServer), self

    def on_messages(self, link: Link, messages: list[Message]) -> None:
        self.messages += messages
        self._changed.set()

    def on_closed(self, link: Link, reason: str) -> None:
        self.reason = reason
        self.events.append("closed")
        self._changed.set()

    def on_full(self, link: Link) -> None:
        self.events.append("full")
        self._changed.set()

    def on_drained(self, link: Link) -> None:
        self.events.append("drained")
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def until_closed(self) -> str:
        await self.until(lambda: self.reason is not None)
        assert self.reason is not None
        return self.reason


def end_threads() -> None:
    """Those of encrypted links for data: each closes what it has when it ends, and that comes after its link's end."""
    for thread in threading.enumerate():
        if thread.name == "loom-tls":
            thread.join(10)
    gc.collect()  # loops, sockets and mappings go with the last reference to them


async def raw_connection(port: int) -> socket.socket:
    """A connection to this host that nobody has greeted on yet."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def shake_hands(sock: socket.socket, handshake: Handshake) -> None:
    """Perform an honest handshake on a raw socket."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, handshake.take_outgoing())
    while not handshake.established:
        data = await loop.sock_recv(sock, handshake.missing)
        assert data, "the other end closed"
        handshake.receive(data)
        await loop.sock_sendall(sock, handshake.take_outgoing())


async def raw_link(port: int, role: Role = "client") -> socket.socket:
    """An established link whose bytes the test writes itself."""
    sock = await raw_connection(port)
    await shake_hands(sock, Connecting(KEY, role, secrets.token_bytes(NONCE_BYTES)))
    return sock


async def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until the other end closes or breaks the connection."""
    data = b""
    while True:
        try:
            piece = await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
        except ConnectionError:
            return data
        if not piece:
            return data
        data += piece
