"""The bytes of a journal, without any I/O: a header, then records, each of one commit. Integers are little-endian.

Header, written twice in a row: magic (8 bytes), format (u32), id of the file (16 random bytes), CRC-32 of these. All
formats begin so.

Record: marker (4 bytes), length of the payload (u32), sequence number (u64, consecutive from 1), CRC-32 of these (begun
with that of the file's id: what another file has left on the disk is never taken for a record), CRC-32 of the payload
(begun with the one before), payload: a msgpack array of facts.

A record is written when the one before is on disk. So only the last one can be torn by a crash: bytes that are no
record with nothing valid behind them. With a valid record behind them they are damage, as is a missing number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from zlib import crc32

from loom.errors import LoomError
from loom.facts import FORMAT
from loom.limits import MAX_RECORD_BYTES, MIB

READABLE: Final = (FORMAT,)
MAGIC: Final = b"\x93LOOMJ\r\n"
FILE_ID_BYTES: Final = 16

_HEAD: Final = struct.Struct("<8sI16s")
_CRC: Final = struct.Struct("<I")
_COPY_BYTES: Final = _HEAD.size + _CRC.size
HEADER_BYTES: Final = 2 * _COPY_BYTES

_MARKER: Final = b"\xf1\x0a\x9c\xe5"  # no text, and not what small numbers or a msgpack of such look like
_RECORD: Final = struct.Struct("<4sIQ")
RECORD_HEADER_BYTES: Final = _RECORD.size + 2 * _CRC.size
_PIECE_BYTES: Final = 1 * MIB  # what is looked at a time, however large a record says it is


class JournalDamaged(LoomError):
    """Bytes at `offset` of a journal are not those that were written."""

    def __init__(self, path: str, offset: int, what: str) -> None:
        super().__init__(path, offset, what)
        self.path = path
        self.offset = offset
        self.what = what

    def __str__(self) -> str:
        return (
            f"the journal {self.path} is damaged at offset {self.offset}: {self.what}. "
            f"`loom journal check {self.path}` says how much is whole, `loom journal repair {self.path}` keeps that "
            "and leaves out the rest"
        )


class NotAJournal(LoomError):
    """A file that no Loom has written as a journal."""


class OtherFormat(LoomError):
    """A journal that another version of Loom has written, in a format which this one does not know."""


class Source(Protocol):
    """A file. `read` gives fewer bytes than asked for only where the file ends."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class Header:
    """`seed`: of the checksums. `damaged_at`: offset of the copy that is not what it was, -1 where both are."""

    file_id: bytes
    seed: int
    damaged_at: int = -1


@dataclass(frozen=True)
class Record:
    """A whole record, its payload checked but not here."""

    offset: int
    sequence: int
    payload_offset: int
    end: int


@dataclass(frozen=True)
class Gap:
    """Bytes that are no record. `is_tail`: nothing valid follows; else damage, and empty if it just misses records.

    `n_lost`: records that are missing for certain.
    """

    offset: int
    end: int
    is_tail: bool
    n_lost: int
    what: str


def header_bytes(file_id: bytes) -> bytes:
    head = _HEAD.pack(MAGIC, FORMAT, file_id)
    return (head + _CRC.pack(crc32(head))) * 2


def seed_of(file_id: bytes) -> int:
    return crc32(file_id)


def read_header(path: str, data: bytes) -> Header | None:
    """`data`: the first HEADER_BYTES of the file and one byte more, or all of a shorter one.

    None: it ends in the header or has only zeros there, so somebody was about to make it, and nothing is in it.

    Raises NotAJournal, OtherFormat, and JournalDamaged where neither copy is whole.
    """
    copies = [data[start : start + _COPY_BYTES] for start in (0, _COPY_BYTES)]
    known = [copy for copy in copies if _is_whole(copy)]
    for copy in known:
        written = _HEAD.unpack_from(copy)[1]
        if written not in READABLE:
            raise OtherFormat(
                f"the journal {path} has format {written}; this Loom reads {', '.join(map(str, READABLE))}. "
                "Start it with the Loom that wrote it, or name another file for a new journal"
            )
    is_short = len(data) < HEADER_BYTES or (len(data) == HEADER_BYTES and not data.strip(b"\0"))
    if is_short and MAGIC.startswith(data.rstrip(b"\0")[: len(MAGIC)]):
        return None
    if not known:
        if MAGIC in (data[: len(MAGIC)], data[_COPY_BYTES : _COPY_BYTES + len(MAGIC)]):
            raise JournalDamaged(path, 0, "neither copy of its header is whole")
        raise NotAJournal(f"{path} is not a journal of Loom: it does not begin like one")
    file_id = _HEAD.unpack_from(known[0])[2]
    damaged_at = -1 if copies[0] == copies[1] else _COPY_BYTES if known[0] is copies[0] else 0
    return Header(file_id, seed_of(file_id), damaged_at)


def _is_whole(copy: bytes) -> bool:
    if len(copy) < _COPY_BYTES or not copy.startswith(MAGIC):
        return False
    (checksum,) = _CRC.unpack_from(copy, _HEAD.size)
    return bool(checksum == crc32(copy[: _HEAD.size]))


def list_head(count: int) -> bytes:
    """What precedes so many facts in a payload (msgpack's array 32)."""
    return b"\xdd" + count.to_bytes(4, "big")


def frame(seed: int, sequence: int, payload: Sequence[bytes | memoryview]) -> bytes:
    """A record; `payload` in parts. ValueError where it is too large."""
    length = sum(map(len, payload))
    if length > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {length:,} bytes (at most {MAX_RECORD_BYTES:,} are allowed)")
    head = _RECORD.pack(_MARKER, length, sequence)
    checksum = head_checksum = crc32(head, seed)
    for part in payload:
        checksum = crc32(part, checksum)
    return b"".join((head, _CRC.pack(head_checksum), _CRC.pack(checksum), *payload))


def record_at(source: Source, seed: int, offset: int) -> Record | None:
    """The record that begins there; None if none does that is whole."""
    head = source.read(offset, RECORD_HEADER_BYTES)
    if len(head) < RECORD_HEADER_BYTES:
        return None
    marker, length, sequence = _RECORD.unpack_from(head)
    (checksum,) = _CRC.unpack_from(head, _RECORD.size)
    begin = offset + RECORD_HEADER_BYTES
    end = begin + length
    if marker != _MARKER or length > MAX_RECORD_BYTES or end > source.size:
        return None
    if checksum != crc32(head[: _RECORD.size], seed):
        return None
    for position in range(begin, end, _PIECE_BYTES):
        checksum = crc32(source.read(position, min(_PIECE_BYTES, end - position)), checksum)
    if checksum != _CRC.unpack_from(head, _RECORD.size + _CRC.size)[0]:
        return None
    return Record(offset, sequence, begin, end)


def stretches(source: Source, seed: int, offset: int = HEADER_BYTES, sequence: int = 1) -> Iterator[Record | Gap]:
    """All of a file from a place where record `sequence` is expected: whole records, and what lies between them."""
    while offset < source.size:
        record = record_at(source, seed, offset)
        if record is None or record.sequence < sequence:
            record = _next_record(source, seed, offset + 1, sequence)
            if record is None:
                yield Gap(offset, source.size, True, 0, "no whole record follows")
                return
        n_lost = record.sequence - sequence
        if n_lost or record.offset > offset:
            yield Gap(offset, record.offset, False, n_lost, _damage(record.offset - offset, sequence, n_lost))
        yield record
        offset, sequence = record.end, record.sequence + 1


def _damage(size_bytes: int, sequence: int, n_lost: int) -> str:
    missing = f"record {sequence} is" if n_lost == 1 else f"records {sequence} to {sequence + n_lost - 1} are"
    if not size_bytes:
        return f"{missing} missing"
    return f"{size_bytes:,} bytes are no record" + (f", {missing} lost" if n_lost else "")


def _next_record(source: Source, seed: int, offset: int, sequence: int) -> Record | None:
    """The first whole record from `offset` on with that number or a higher one."""
    overlap = len(_MARKER) - 1
    while offset < source.size:
        piece = source.read(offset, _PIECE_BYTES)
        if not piece:
            return None
        at = piece.find(_MARKER)
        while at >= 0:
            record = record_at(source, seed, offset + at)
            if record is not None and record.sequence >= sequence:
                return record
            at = piece.find(_MARKER, at + 1)
        offset += max(len(piece) - overlap, 1)
    return None
