"""An encrypted transport for bulk data: a thread of its own encrypts and decrypts, while the loop goes on.

On the loop's side it is like any other transport of a BufferedProtocol. What is written are references: a mapped file
is encrypted from where it lies. What arrives is decrypted into a few buffers, and nothing more is read while these are
full.
"""

import asyncio
import errno
import os
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from loom.limits import BULK_PIECE_BYTES, HANDSHAKE_TIMEOUT_S, LINK_HIGH_WATER_BYTES, LINK_LOW_WATER_BYTES

_VANISHED_MS: Final = 60_000
_CHUNKS: Final = 4  # that may be on their way to the loop
_TURN_BYTES: Final = 4 * BULK_PIECE_BYTES  # written in one go before it is read again, and the other way round


class ThreadedTransport(asyncio.Transport):
    """Takes the socket (non-blocking, connected), which is its own from now on. `start` makes it work."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, protocol: asyncio.BufferedProtocol, *, accepting: bool
    ) -> None:
        super().__init__(
            {
                "socket": sock,
                "sslcontext": context,
                "peername": _name(sock.getpeername),
                "sockname": _name(sock.getsockname),
            }
        )
        if sock.family != socket.AF_UNIX:  # a host that vanished: keep-alive says nothing while data is under way
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _VANISHED_MS)
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._plain = sock
        self._context = context
        self._accepting = accepting
        self._lock = threading.Lock()  # over what both threads change: the next four
        self._over = False  # the descriptors are closed
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting_bytes = 0  # written and not yet encrypted
        self._full = False
        self._outgoing: deque[memoryview] = deque()
        self._spare: deque[memoryview] = deque()  # buffers for what arrives
        self._n_chunks = 0  # of such buffers, those on their way to the loop too
        self._high, self._low = LINK_HIGH_WATER_BYTES, LINK_LOW_WATER_BYTES
        self._is_made = False
        self._closing = False
        self._aborted = False

    async def start(self) -> None:
        """The TLS handshake, then `connection_made`. Raises OSError."""
        made: asyncio.Future[None] = self._loop.create_future()
        try:
            # A duplicate, so that the descriptor that `abort` shuts down is never one that was closed and is another's.
            own = self._plain.dup()
            try:
                threading.Thread(target=self._run, args=(own, made), name="loom-tls", daemon=True).start()
            except RuntimeError as error:  # a limit on processes
                own.close()
                raise OSError(errno.EAGAIN, str(error)) from None
        except OSError:
            self._release()
            raise
        try:
            await made
        except asyncio.CancelledError:
            self.abort()
            raise

    # -- Called by the protocol, on the loop's thread -----------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        if self._closing or not view.nbytes:
            return
        with self._lock:
            self._waiting_bytes += view.nbytes
            becomes_full = not self._full and self._waiting_bytes > self._high
            self._full |= becomes_full
        self._outgoing.append(view.cast("B"))
        self._rouse()
        if becomes_full:
            self._protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = LINK_HIGH_WATER_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._waiting_bytes

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.BufferedProtocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Once all is written."""
        self._closing = True
        self._rouse()

    def abort(self) -> None:
        self._closing = self._aborted = True
        with self._lock, suppress(OSError):  # the other end has gone already
            if not self._over:
                self._plain.shutdown(socket.SHUT_RDWR)  # ends a TLS handshake, which does not look at `_wake`
        self._rouse()

    def _rouse(self) -> None:
        with self._lock:
            if not self._over:
                os.eventfd_write(self._wake, 1)

    # -- Said by the thread, on the loop's ----------------------------------------------------------------------------

    def _on_made(self, made: asyncio.Future[None]) -> None:
        if made.cancelled() or self._aborted:
            return
        self._is_made = True
        self._protocol.connection_made(self)
        made.set_result(None)

    def _on_chunk(self, chunk: memoryview, size_bytes: int) -> None:
        begin = 0
        try:
            while begin < size_bytes and not self._closing:  # a protocol that has closed takes nothing any more
                room = memoryview(self._protocol.get_buffer(-1))
                count = min(len(room), size_bytes - begin)
                if not count:
                    raise BufferError("a protocol gave no room for what came")
                room[:count] = chunk[begin : begin + count]
                begin += count
                self._protocol.buffer_updated(count)
        except BaseException:
            self.abort()
            raise
        self._spare.append(chunk)
        self._rouse()

    def _on_drained(self) -> None:
        with self._lock:
            is_drained = self._full and self._waiting_bytes <= self._low
            self._full &= not is_drained
        if is_drained and not self._closing:
            self._protocol.resume_writing()

    def _on_end(self, error: OSError | None, made: asyncio.Future[None]) -> None:
        self._closing = True
        self._outgoing.clear()
        self._spare.clear()
        if self._is_made:
            self._protocol.connection_lost(error)
        elif not made.done():
            made.set_exception(error or ConnectionAbortedError("the connection was closed"))

    # -- The thread ---------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        with self._lock:
            self._over = True
            self._plain.close()
            os.close(self._wake)

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(call, *arguments)

    def _run(self, own: socket.socket, made: asyncio.Future[None]) -> None:
        error: OSError | None = None
        try:
            with (
                own,  # until it is wrapped; if the peer has left already it never is
                self._context.wrap_socket(own, server_side=self._accepting, do_handshake_on_connect=False) as secure,
            ):
                secure.settimeout(HANDSHAKE_TIMEOUT_S)
                secure.do_handshake()
                secure.setblocking(False)
                self._tell(self._on_made, made)
                self._pump(secure)
        except OSError as problem:
            error = problem.with_traceback(None)  # which has this frame, and with it all that is here
        finally:
            self._release()
            self._tell(self._on_end, error, made)

    def _pump(self, secure: ssl.SSLSocket) -> None:
        """Until it is closed from either side. Raises OSError."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        events = 0
        while not self._aborted:
            blocked_on = 0  # what the last tries wait for
            is_busy = False
            if self._outgoing:
                progress, waits = self._write(secure)
                is_busy |= progress
                blocked_on |= waits
            elif self._closing:
                return
            if self._spare or self._n_chunks < _CHUNKS:
                count, waits = self._read(secure)
                if count is None:
                    return
                is_busy |= count > 0
                blocked_on |= waits
            if is_busy:
                continue
            if blocked_on != events:
                if events:
                    poll.unregister(secure)
                if blocked_on:
                    poll.register(secure, blocked_on)
                events = blocked_on
            poll.poll()
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)

    def _write(self, secure: ssl.SSLSocket) -> tuple[bool, int]:
        """Whether something went out, and what more has to wait for."""
        written = 0
        waits = 0
        try:
            while self._outgoing and written < _TURN_BYTES:
                view = self._outgoing[0]
                count = secure.send(view)
                written += count
                if count < len(view):
                    self._outgoing[0] = view[count:]
                else:
                    self._outgoing.popleft()
        except ssl.SSLWantWriteError:
            waits = select.POLLOUT
        except ssl.SSLWantReadError:
            waits = select.POLLIN
        if written:
            with self._lock:
                self._waiting_bytes -= written
                tells = self._full and self._waiting_bytes <= self._low
            if tells:
                self._tell(self._on_drained)
        return written > 0, waits

    def _read(self, secure: ssl.SSLSocket) -> tuple[int | None, int]:
        """How many bytes came, None at the end of all; and what more has to wait for."""
        if self._spare:
            chunk = self._spare.popleft()
        else:
            chunk = memoryview(bytearray(BULK_PIECE_BYTES))
            self._n_chunks += 1
        filled = 0
        waits = 0
        is_over = False
        try:
            while filled < len(chunk):
                count = secure.recv_into(chunk[filled:])
                if not count:
                    is_over = True
                    break
                filled += count
        except ssl.SSLWantReadError:
            waits = select.POLLIN
        except ssl.SSLWantWriteError:
            waits = select.POLLOUT
        if filled:
            self._tell(self._on_chunk, chunk, filled)
        else:
            self._spare.append(chunk)
        return (None if is_over else filled), waits


def _name(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except OSError:  # the peer has left
        return None
