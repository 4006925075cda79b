"""Links over a unix socket that keeps message boundaries and can hand descriptors over.

The socket's name is in the abstract namespace: reaching it proves that both ends are on one host (more exactly, in one
network namespace). Everybody on it can see the name, and take it when its owner has died. So both ends look whose
process the other one is, and a handshake that is not of this very socket is refused.

A list of messages travels in one packet or several; the first byte of each says whether more follow. Descriptors travel
with the first.
"""

import array
import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from loom.errors import ConnectError, ProtocolError
from loom.limits import KIB, MAX_FRAME_BYTES, MAX_HANDOVER_FDS, MAX_HANDSHAKE_BYTES
from loom.messages import Message
from loom.net.sockets import is_own_user, this_machine
from loom.net.trust import Trust
from loom.wire.codec import Decoder, encode_payload
from loom.wire.handshake import Connecting, Handshake, Role, place_of

_log = logging.getLogger(__name__)

_PACKET_BYTES: Final = 64 * KIB  # well below the default send buffer (208 KiB), which a packet must fit as a whole
_PACKETS_A_TURN: Final = 16  # read at a time before other links have their turn
_FLIGHT_PAUSE_S: Final = 0.002  # until descriptors in flight (the kernel bounds them a user) may have been received
_OF_HOST: Final = "@"  # between the name of a socket, which has none in it, and the id of its host
_LAST: Final = b"\0"
_MORE: Final = b"\1"
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_HANDOVER_FDS * array.array("i").itemsize)


class HandoverHandler(Protocol):
    """Who is told what happens on handover links; as `LinkHandler`."""

    def on_messages(self, link: "HandoverLink", messages: list[Message]) -> None: ...

    def on_closed(self, link: "HandoverLink", reason: str) -> None: ...

    def on_drained(self, link: "HandoverLink") -> None: ...


class _Packet(NamedTuple):
    start: bytes
    part: memoryview
    descriptors: Sequence[int]


class HandoverLink:
    """One end of an established handover connection; as `Link`, but for what is said here."""

    def __init__(self, sock: socket.socket, peer: str, decoder: Decoder, handler: HandoverHandler) -> None:
        self.peer = peer
        self.full = False
        """Something waits for the peer to read on."""
        self.closed = False
        self.received_bytes = 0
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decode = decoder.decode
        self._handler = handler
        self._outgoing: deque[_Packet] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._packet = memoryview(bytearray(len(_LAST) + _PACKET_BYTES))
        self._parts = bytearray()  # of a list of messages that is not complete yet
        self._descriptors: deque[int] = deque()  # received and not taken
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def send(self, messages: Sequence[Message], descriptors: Sequence[int] = ()) -> None:
        """Send the messages, and at most MAX_HANDOVER_FDS descriptors with them.

        The descriptors become the link's, which closes them; one may be named several times.
        """
        if self.closed:
            _close_all(descriptors)
            return
        payload = memoryview(encode_payload(messages))
        for begin in range(0, len(payload), _PACKET_BYTES):
            end = begin + _PACKET_BYTES
            start = _MORE if end < len(payload) else _LAST
            self._outgoing.append(_Packet(start, payload[begin:end], () if begin else descriptors))
        if not self.full:
            self._flush()

    def take_descriptors(self, count: int) -> list[int]:
        """The next received descriptors, now the caller's; called in `on_messages`, which must take all of them."""
        if count > len(self._descriptors):
            raise ProtocolError(f"{len(self._descriptors)} descriptors came where {count} were announced")
        return [self._descriptors.popleft() for _ in range(count)]

    def abort(self, reason: str) -> None:
        """Close at once; what waits is dropped. `on_closed` is called soon."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        if self._retry is not None:
            self._retry.cancel()
        self._sock.close()
        for packet in self._outgoing:
            _close_all(packet.descriptors)
        self._outgoing.clear()
        _close_all(self._descriptors)
        self._loop.call_soon(self._handler.on_closed, self, reason)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while self._outgoing:
            start, part, descriptors = packet = self._outgoing[0]
            passed = array.array("i", descriptors)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if descriptors else []
            try:
                self._sock.sendmsg([start, part], ancillary)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._on_writable)
                self.full = True
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    self._retry = self._loop.call_later(_FLIGHT_PAUSE_S, self._on_writable)
                    self.full = True
                else:
                    self.abort(str(error))
                return
            self._outgoing.popleft()
            _close_all(packet.descriptors)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self.full = False
        self._flush()
        if not self.full and not self.closed:
            self._handler.on_drained(self)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            for _ in range(_PACKETS_A_TURN):
                if self.closed or not self._receive_packet():
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(str(error))
        except ProtocolError as error:
            reason = f"protocol error: {error}"
            _log.warning("closing the link to %s: %s", self.peer, reason)
            self.abort(reason)
        except BaseException:
            self.abort("failure of this end")  # a fault of ours: the loop logs it
            raise

    def _receive_packet(self) -> bool:
        """Whether to go on."""
        count, ancillary, flags, _ = self._sock.recvmsg_into([self._packet], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        for _, _, data in ancillary:
            self._descriptors.extend(array.array("i", data))
        if count == 0:
            self.abort("closed by the other end")
            return False
        if flags & socket.MSG_CTRUNC:
            self.abort("no room for more open files (see ulimit -n)")
            return False
        if flags & socket.MSG_TRUNC or len(self._parts) + count > MAX_FRAME_BYTES:
            raise ProtocolError("a packet above the limit")
        self.received_bytes += count
        payload: memoryview | bytearray = self._packet[1:count]
        more = self._packet[0] == _MORE[0]
        if more or self._parts:
            self._parts += payload
            if more:
                return True
            payload, self._parts = self._parts, bytearray()
        self._handler.on_messages(self, self._decode(memoryview(payload)))
        if self._descriptors and not self.closed:
            raise ProtocolError(f"{len(self._descriptors)} descriptors came that were not announced")
        return True


class HandoverGreeting:
    """The time of a handover connection before its peer has proven the key; as `Greeting`."""

    def __init__(
        self,
        sock: socket.socket,
        handshake: Handshake,
        established: Callable[["HandoverGreeting", socket.socket], None],
        refused: Callable[["HandoverGreeting", ConnectError], None],
    ) -> None:
        self._sock = sock
        self._handshake = handshake
        self._established = established
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._loop.add_reader(sock.fileno(), self._on_readable)
        self._loop.call_soon(self._step, b"")

    def cut(self, reason: str) -> None:
        """End it from outside; `refused` is called with the reason."""
        self._refuse(ConnectError(reason))

    def _on_readable(self) -> None:
        try:
            packet = self._sock.recv(MAX_HANDSHAKE_BYTES)  # takes no descriptors: the kernel drops them
        except BlockingIOError:
            return
        except OSError as error:
            self._refuse(ConnectError(str(error)))
            return
        if packet:
            self._step(packet)
        else:
            self._refuse(ConnectError("it closed the connection instead of proving that it is a Loom peer"))

    def _step(self, packet: bytes) -> None:
        if self._over:
            return
        refusal: ConnectError | None = None
        try:
            self._handshake.receive(packet)
        except ConnectError as error:
            refusal = error
        outgoing = self._handshake.take_outgoing()
        try:
            if outgoing:
                self._sock.send(outgoing)
        except OSError as error:
            refusal = refusal or ConnectError(str(error))
        if refusal is not None:
            self._refuse(refusal)
        elif self._handshake.encrypted:
            self._refuse(ConnectError("it is not the socket that it was taken for"))
        elif self._handshake.established:
            self._end()
            self._established(self, self._sock)

    def _refuse(self, error: ConnectError) -> None:
        if not self._over:
            self._end()
            self._sock.close()
            self._refused(self, error)

    def _end(self) -> None:
        self._over = True
        self._loop.remove_reader(self._sock.fileno())


def handover_place(name: str) -> bytes:
    """As for other links (`wire.handshake`): there is one socket of that name in this network namespace."""
    return place_of(this_machine(), "handover", name)


def handover_text(name: str, host_id: str) -> str:
    """How others are told of the socket."""
    return f"{name}{_OF_HOST}{host_id}" if host_id else name


def handover_name(text: str, own_host_id: str) -> str:
    """The socket to try, of one that others have told of; empty where they are on another host than this process.

    That is where both say which host theirs is. Elsewhere the socket is tried: one of another host is not there.
    """
    name, _, host_id = text.partition(_OF_HOST)
    return "" if host_id and own_host_id and host_id != own_host_id else name


def handover_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


async def connect_handover(
    name: str, role: Role, trust: Trust, decoder: Decoder, handler: HandoverHandler, timeout_s: float
) -> HandoverLink:
    """Open a link to the handover socket of that name. Raises ConnectError: on another host at once."""
    opened: asyncio.Future[HandoverLink] = asyncio.get_running_loop().create_future()

    def established(_: HandoverGreeting, sock: socket.socket) -> None:
        link = HandoverLink(sock, f"handover socket {name}", decoder, handler)
        if opened.done():
            link.abort("given up")
        else:
            opened.set_result(link)

    def refused(_: HandoverGreeting, error: ConnectError) -> None:
        if not opened.done():
            opened.set_exception(error)

    sock = handover_socket()
    try:
        sock.connect("\0" + name)
        if not is_own_user(sock):
            raise ConnectionRefusedError(errno.EACCES, "another user listens there")
    except OSError as error:
        sock.close()
        raise ConnectError(f"handover socket {name}: {error.strerror}") from None
    handshake = trust.handshake(Connecting, role, "not in between", handover_place(name))
    greeting = HandoverGreeting(sock, handshake, established, refused)
    try:
        async with asyncio.timeout(timeout_s):
            return await opened
    except BaseException as error:
        greeting.cut("given up")
        if opened.done() and not opened.cancelled() and opened.exception() is None:
            opened.result().abort("given up")  # cancelled in the very turn that established it
        if isinstance(error, TimeoutError):
            raise ConnectError(f"handover socket {name}: no answer within {timeout_s:g} s") from None
        raise


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in set(descriptors):
        os.close(descriptor)
