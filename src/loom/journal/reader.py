"""Reads a journal, record by record: one record is in memory at a time, however large the file is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final, Self

import msgspec

from loom.errors import LoomError
from loom.facts import AnyFact
from loom.journal.framing import (
    HEADER_BYTES,
    Gap,
    Header,
    JournalDamaged,
    Record,
    read_header,
    stretches,
)
from loom.journal.sound import is_sound
from loom.limits import MIB

_decode: Final = msgspec.msgpack.Decoder(list[AnyFact]).decode
_BLOCK_BYTES: Final = 4096
_WINDOW_BYTES: Final = 1 * MIB


class FileSource:
    """A file as `framing.Source`. It is not mapped: a bad sector below a mapping kills the process without a word.

    A place that the disk cannot read raises LoomError, or counts as zeros where it is `lenient`.
    """

    def __init__(self, path: str, fd: int, lenient: bool = False) -> None:
        self.path = path
        self.fd = fd
        self.lenient = lenient
        self.size = os.fstat(fd).st_size
        self._window = b""  # of the file, from `_start` on: records are small, and calls of the system are not
        self._start = 0

    def read(self, offset: int, length: int) -> bytes:
        length = max(min(length, self.size - offset), 0)
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._window):
            if length > _WINDOW_BYTES:
                return self._read(offset, length)
            self._window = self._read(offset, min(_WINDOW_BYTES, self.size - offset))
            self._start, begin = offset, 0
        return self._window[begin : begin + length]

    def _read(self, offset: int, length: int) -> bytes:
        parts = []
        end = offset + length
        while offset < end:
            try:
                part = os.pread(self.fd, end - offset, offset)
            except OSError as error:
                if not self.lenient:
                    raise LoomError(
                        f"the journal {self.path} cannot be read at offset {offset}: {error.strerror}. If the disk "
                        f"does not recover, `loom journal repair {self.path}` leaves out what cannot be read"
                    ) from error
                part = self._readable(offset, min(_BLOCK_BYTES, end - offset))
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _readable(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self.fd, length, offset)
        except OSError:
            return bytes(length)


class JournalReader:
    """An open journal. `header` is None for a new one, in which nothing is.

    Raises LoomError (also NotAJournal, OtherFormat, JournalDamaged) for a file that is not one. With `fd` that
    descriptor is used, and stays open. `lenient`: for what is done with a damaged one.

    After `facts` has ended, records up to `end` are whole, `sequence` is the number of the next one, and `torn_bytes`
    more are a record that was being written when its server died.
    """

    def __init__(self, path: str, fd: int = -1, lenient: bool = False) -> None:
        self.path = path
        self._own = fd < 0
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) if self._own else fd
        except OSError as error:
            raise LoomError(f"the journal {path} cannot be read: {error.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(self.fd).st_mode):
                raise LoomError(f"the journal {path} cannot be read: it is not a regular file")
            self.source = FileSource(path, self.fd, lenient)
            self.header: Header | None = read_header(path, self.source.read(0, HEADER_BYTES + 1))
            if self.header is not None and self.header.damaged_at >= 0 and not lenient:
                raise JournalDamaged(path, self.header.damaged_at, "one of the two copies of its header is not whole")
        except BaseException:
            self.close()
            raise
        self.end = HEADER_BYTES if self.header is not None else 0
        self.sequence = 1
        self.torn_bytes = 0 if self.header is not None else self.source.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; twice is once."""
        if self._own and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def stretches(self, offset: int = HEADER_BYTES, sequence: int = 1) -> Iterator[Record | Gap]:
        """What is there from the place where record `sequence` is expected, damage included."""
        if self.header is None:
            return iter(())
        return stretches(self.source, self.header.seed, offset, sequence)

    def records(self, offset: int = HEADER_BYTES, sequence: int = 1) -> Iterator[Record]:
        """The records of a journal that is whole, or has a torn tail. JournalDamaged, once those before are out."""
        if self.header is not None:
            self.end, self.sequence = offset, sequence
        for stretch in self.stretches(offset, sequence):
            if isinstance(stretch, Record):
                self.end, self.sequence = stretch.end, stretch.sequence + 1
                yield stretch
            elif stretch.is_tail:
                self.torn_bytes = stretch.end - stretch.offset
            else:
                raise JournalDamaged(self.path, stretch.offset, stretch.what)

    def payload(self, record: Record) -> bytes:
        return self.source.read(record.payload_offset, record.end - record.payload_offset)

    def decoded(self, record: Record) -> list[AnyFact]:
        """The facts of a record. JournalDamaged where its bytes are what was written, and yet not facts."""
        try:
            facts = _decode(self.payload(record))
            why = next((f"{type(fact).__name__} that make no sense" for fact in facts if not is_sound(fact)), "")
        except (ValueError, RecursionError) as error:  # msgspec's errors and UnicodeDecodeError are ValueErrors
            why = str(error)
        if why:
            what = f"the record there holds what this Loom cannot read; was a newer one used with it? ({why})"
            raise JournalDamaged(self.path, record.offset, what)
        return facts

    def facts(self, until: int | None = None) -> Iterator[tuple[int, list[AnyFact]]]:
        """Facts and the offset of their record, commit by commit; `until`: end of the last record that is wanted."""
        for record in self.records():
            yield record.offset, self.decoded(record)
            if record.end == until:
                return
