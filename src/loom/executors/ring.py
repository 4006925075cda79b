"""A ring of records in shared memory: an executor's results, on their way to its worker.

One process writes, one reads. The reader takes a record only when its sequence number and checksum fit, so it needs no
lock and no memory barrier: a record that is half there is not there yet. What was published outlives its writer, so
after a crash it is known which tasks had finished and which one was running.
"""

import mmap
import os
from struct import Struct
from typing import Final
from zlib import crc32

CAPACITY_BYTES: Final = 256 * 1024  # some 1,500 small results; a full ring only makes its writer use the socket
MAX_RECORD_BYTES: Final = CAPACITY_BYTES // 2  # so that a record always fits into an empty ring, wherever it starts

_HEADER_BYTES: Final = 4096
_ALIGNMENT: Final = 16  # of records: the header of one never straddles the end of the ring
_RECORD: Final = Struct("=QII")  # sequence number, length, CRC-32 of the payload
_TO_THE_START: Final = 0xFFFFFFFF  # a length that says: the next record is at the start of the ring

# Words of the header page, on cache lines of their own: the last two are the reader's, the others the writer's.
_STARTED: Final = 0
_SINCE: Final = (
    1  # when that was, in nanoseconds; the low bits are those of the serial, so that it is known whose it is
)
_SERIAL_MASK: Final = (1 << 20) - 1
_TAIL: Final = 8
_HEAD: Final = 16
_CROWDED: Final = 24


def create_ring_memory() -> int:
    """Make the memory of one ring; returns its descriptor, which both sides open with `ResultRing`."""
    fd = os.memfd_create("loom-results", os.MFD_CLOEXEC)
    os.ftruncate(fd, _HEADER_BYTES + CAPACITY_BYTES)
    return fd


class ResultRing:
    """One side of a ring. Positions count bytes since the beginning and never wrap."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _HEADER_BYTES + CAPACITY_BYTES)
        self._words = memoryview(self._memory)[:_HEADER_BYTES].cast("Q")  # native words: written in one piece
        self._position = 0
        self._sequence = 1

    def mark_started(self, serial: int, now_ns: int) -> None:
        """Say that this task is running now, by the monotonic clock."""
        self._words[_STARTED] = serial
        self._words[_SINCE] = now_ns & ~_SERIAL_MASK | serial & _SERIAL_MASK

    @property
    def started(self) -> int:
        """Serial of the task that was started last."""
        return self._words[_STARTED]

    def started_at(self, serial: int) -> float | None:
        """When this task was started, in seconds to about a millisecond; None while another is the last."""
        since = self._words[_SINCE]
        return since / 1e9 if since and (since ^ serial) & _SERIAL_MASK == 0 else None

    @property
    def crowded(self) -> bool:
        """Whether the reader wants large results on disk rather than in memory."""
        return bool(self._words[_CROWDED])

    @crowded.setter
    def crowded(self, value: bool) -> None:
        self._words[_CROWDED] = value

    def publish(self, payload: bytes) -> bool:
        """Append a record; False where it does not fit (now, or ever when above MAX_RECORD_BYTES)."""
        length = len(payload)
        if length > MAX_RECORD_BYTES:
            return False
        needed = (_RECORD.size + length + _ALIGNMENT - 1) & -_ALIGNMENT
        position = self._position
        free = CAPACITY_BYTES - (position - self._words[_HEAD])
        until_end = CAPACITY_BYTES - position % CAPACITY_BYTES
        if needed > until_end:
            if until_end + needed > free:
                return False
            self._append(position, _TO_THE_START, b"")
            position += until_end
        elif needed > free:
            return False
        self._append(position, length, payload)
        self._position = position + needed
        self._words[_TAIL] = self._position
        return True

    def _append(self, position: int, length: int, payload: bytes) -> None:
        record = _RECORD.pack(self._sequence, length, crc32(payload)) + payload
        start = _HEADER_BYTES + position % CAPACITY_BYTES
        self._memory[start : start + len(record)] = record
        self._sequence += 1

    def drain(self) -> list[bytes]:
        """Take every record that is there, oldest first."""
        tail = self._words[_TAIL]
        position = self._position
        if position == tail:
            return []
        records: list[bytes] = []
        memory = self._memory
        while position < tail:
            offset = position % CAPACITY_BYTES
            start = _HEADER_BYTES + offset
            sequence, length, checksum = _RECORD.unpack_from(memory, start)
            if sequence != self._sequence:
                break
            if length == _TO_THE_START:
                position += CAPACITY_BYTES - offset
            else:
                data_start = start + _RECORD.size
                payload = memory[data_start : data_start + length]
                if len(payload) != length or crc32(payload) != checksum:
                    break
                records.append(payload)
                position += (_RECORD.size + length + _ALIGNMENT - 1) & -_ALIGNMENT
            self._sequence += 1
        self._position = position
        self._words[_HEAD] = position
        return records

    def close(self) -> None:
        self._words.release()
        self._memory.close()
