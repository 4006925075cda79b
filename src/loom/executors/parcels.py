"""Messages of any size, with descriptors, over a SOCK_SEQPACKET socket: each is received whole, by one receiver.

A body that is too large for a packet travels in a memory file whose descriptor goes first.
"""

import array
import mmap
import os
import socket
from typing import Final

from loom.limits import KIB, MAX_HANDOVER_FDS

PACKET_BODY_BYTES: Final = 64 * KIB  # the least send buffer that a kernel gives by default is 208 KiB
_BODY_IN_PACKET: Final = b"\0"
_BODY_IN_FILE: Final = b"\1"
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE((MAX_HANDOVER_FDS + 1) * array.array("i").itemsize)


def send_parcel(sock: socket.socket, body: bytes, fds: list[int]) -> None:
    """Send one message; the descriptors stay the caller's.

    BlockingIOError: the queue is full and the socket non-blocking. Other OSErrors pass through, and nothing was sent.
    """
    assert len(fds) <= MAX_HANDOVER_FDS
    if len(body) <= PACKET_BODY_BYTES:
        if fds:
            socket.send_fds(sock, (_BODY_IN_PACKET, body), fds)
        else:
            sock.sendmsg((_BODY_IN_PACKET, body))
        return
    file = os.memfd_create("loom-message", os.MFD_CLOEXEC)
    try:
        rest = memoryview(body)
        while rest:
            rest = rest[os.write(file, rest) :]
        socket.send_fds(sock, (_BODY_IN_FILE,), [file, *fds])
    finally:
        os.close(file)


class ParcelReceiver:
    """Receives messages from one socket, one after the other, into one buffer."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._packet = memoryview(bytearray(1 + PACKET_BODY_BYTES))

    def receive(self, flags: int = 0) -> tuple[memoryview, list[int]] | None:
        """The next body, valid until the next call, and its descriptors, now the caller's. None: the sender is gone.

        BlockingIOError: there is none now and the call must not wait.
        """
        size, ancillary, _flags, _address = self._socket.recvmsg_into(
            (self._packet,), _ANCILLARY_BYTES, flags | socket.MSG_CMSG_CLOEXEC
        )
        if size == 0:
            return None
        fds = array.array("i")
        for _level, _kind, data in ancillary:
            fds.frombytes(data)
        if self._packet[0] == _BODY_IN_PACKET[0]:
            return self._packet[1:size], fds.tolist()
        file, *handed = fds
        try:
            with mmap.mmap(file, 0, prot=mmap.PROT_READ) as mapped:
                return memoryview(mapped[:]), handed
        finally:
            os.close(file)
