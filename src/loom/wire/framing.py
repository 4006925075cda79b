"""Frames on a byte stream, without any I/O: length (u32, little-endian), kind (u8), fold of these two (u16), checksum
(u32), payload.

A control frame is handed out whole, if its checksum fits (CRC-32 of the payload, begun with the length): TCP's own lets
some damage pass, and a message that has become another one would be believed. The fold is looked at as soon as a header
is there: a length that is wrong would have the reader wait for bytes that never come.

The payload of bulk frames, which have no checksum, is a stream of its own that lands straight in a buffer which the
reader was given before; one object may take many bulk frames, cut anywhere. What the payloads mean is not known here.
"""

import mmap
import struct
from collections.abc import Callable
from typing import Final
from zlib import crc32

from loom.errors import ProtocolError
from loom.limits import KIB, MAX_FRAME_BYTES

CONTROL: Final = 1
BULK: Final = 2

_HEADER: Final = struct.Struct("<IBHI")
HEADER_BYTES: Final = _HEADER.size
_ZEROED_BYTES: Final = 1024 * KIB
_SCRATCH_BYTES: Final = 64 * KIB  # what one read takes of small frames; larger ones get a buffer of their own


def put_header(frame: bytearray, kind: int) -> None:
    """Fill in the first HEADER_BYTES of a frame whose payload is already behind them."""
    length = len(frame) - HEADER_BYTES
    _HEADER.pack_into(frame, 0, length, kind, _fold(length, kind), crc32(memoryview(frame)[HEADER_BYTES:], length))


def bulk_header(size_bytes: int) -> bytes:
    """What precedes `size_bytes` (at most MAX_FRAME_BYTES) of bulk payload."""
    return _HEADER.pack(size_bytes, BULK, _fold(size_bytes, BULK), 0)


def _fold(length: int, kind: int) -> int:
    """Another one for any flipped bit, and for whatever happens to up to 16 bits in a row."""
    return (length ^ length >> 16 ^ kind) & 0xFFFF


class FrameReader:
    """Cuts what arrives into frames: `buffer`, `received` and then `next_frame` until it gives None.

    A reader that has raised ProtocolError is of no further use.
    """

    __slots__ = (
        "_checksum",
        "_control",
        "_end",
        "_filled",
        "_landed",
        "_landing",
        "_max_frame_bytes",
        "_scratch",
        "_start",
        "_target",
    )

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._start = 0  # of what is in scratch and not yet consumed
        self._end = 0
        self._target: memoryview | None = None  # where the payload of the current large frame goes, past scratch
        self._filled = 0  # bytes of the target that have arrived
        self._control = False  # the target is a control frame, not a stretch of the landing
        self._checksum = 0  # of that frame
        self._landing: memoryview | None = None  # what bulk frames have yet to fill
        self._landed: Callable[[], None] | None = None

    def buffer(self) -> memoryview:
        """Where the next bytes from the socket belong; never empty. Ends the life of the frame handed out last."""
        if self._target is not None:
            return self._target[self._filled :]
        if self._start:
            waiting = self._end - self._start
            self._scratch[:waiting] = self._scratch[self._start : self._end]
            self._start, self._end = 0, waiting
        return self._scratch[self._end :]

    def received(self, count: int) -> None:
        """`count` bytes were written to the start of `buffer()`."""
        if self._target is not None:
            self._filled += count
        else:
            self._end += count

    def land(self, buffer: memoryview, landed: Callable[[], None]) -> None:
        """Let the bulk frames that come next fill `buffer` (not empty), then call `landed` from `next_frame`."""
        assert self._landing is None, "one landing at a time"
        assert len(buffer), "nothing to land"
        self._landing, self._landed = buffer, landed

    def next_frame(self) -> memoryview | None:
        """The payload of the next control frame, or None until more bytes have come.

        Raises ProtocolError for what was damaged, an unknown kind, a frame above the limit, bulk that nobody expects,
        and a control frame in the middle of a landing.
        """
        while True:
            if self._target is not None:
                if not self._fill_target():
                    return None
                frame, self._target = self._target, None
                if self._control:
                    return _checked(frame, self._checksum)
                self._advance_landing(len(frame))
                continue
            begin = self._start + HEADER_BYTES
            if self._end < begin:
                return None
            length, kind, fold, checksum = _HEADER.unpack_from(self._scratch, self._start)
            if fold != _fold(length, kind) or (checksum and kind == BULK):
                raise ProtocolError("the header of a frame was damaged on its way")
            if kind != CONTROL:
                self._begin_bulk(length, kind)
                continue
            if length > self._max_frame_bytes:
                raise ProtocolError(f"a frame of {length:,} bytes (at most {self._max_frame_bytes:,} are allowed)")
            if self._landing is not None:
                raise ProtocolError("a control frame in the middle of an object")
            if begin + length <= self._end:
                self._start = begin + length
                return _checked(self._scratch[begin : self._start], checksum)
            if length + HEADER_BYTES <= _SCRATCH_BYTES:
                return None
            self._checksum = checksum
            self._aim(_room(length), control=True)

    def _begin_bulk(self, length: int, kind: int) -> None:
        if kind != BULK:
            raise ProtocolError(f"unknown kind of frame ({kind})")
        room = len(self._landing) if self._landing is not None else 0
        if self._landing is None or not 0 < length <= room:
            raise ProtocolError(f"{length:,} bytes of bulk data where {room:,} are expected")
        self._aim(self._landing[:length], control=False)

    def _aim(self, target: memoryview, *, control: bool) -> None:
        self._start += HEADER_BYTES
        self._target, self._filled, self._control = target, 0, control

    def _fill_target(self) -> bool:
        """Move to the target what scratch has of it; whether it is complete."""
        assert self._target is not None
        count = min(self._end - self._start, len(self._target) - self._filled)
        if count:
            self._target[self._filled : self._filled + count] = self._scratch[self._start : self._start + count]
            self._start += count
            self._filled += count
        return self._filled == len(self._target)

    def _advance_landing(self, count: int) -> None:
        assert self._landing is not None
        assert self._landed is not None
        self._landing = self._landing[count:]
        if not self._landing:
            landed, self._landing, self._landed = self._landed, None, None
            landed()


def _room(length: int) -> memoryview:
    """For a frame. What is announced takes no memory before it comes: a large bytearray would, as it is filled with
    zeros.
    """
    return memoryview(bytearray(length) if length <= _ZEROED_BYTES else mmap.mmap(-1, length))


def _checked(frame: memoryview, checksum: int) -> memoryview:
    """The payload of a control frame that is what it was when it was sent."""
    if crc32(frame, len(frame)) != checksum:
        raise ProtocolError(f"a frame of {len(frame):,} bytes was damaged on its way")
    return frame
