"""Reads traces: those of finished runs, of runs that go on, and of processes that were killed while they wrote."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from loom.errors import LoomError
from loom.trace.records import MAX_US, RAN, SUFFIX, VERSION, AnyRecord, Opened, PlanGrew, TasksRan

_decode: Final = msgspec.msgpack.Decoder(AnyRecord).decode
_get_length: Final = struct.Struct("<I").unpack_from
_LENGTH_BYTES: Final = 4
_times_of: Final = struct.Struct("<14xQQ8x").iter_unpack  # of a row of RAN


@dataclass
class TraceFile:
    """One process. `records`: those behind `opened`, in the order written.

    `complete`: the file ends with a whole record and all of it could be read; `note` says what was wrong where not.
    """

    path: str
    opened: Opened
    records: list[AnyRecord] = field(default_factory=list)
    complete: bool = True
    note: str = ""

    def wall_us(self, monotonic_us: int) -> int:
        """The wall clock (since 1970) at a time that stands in a record of this file."""
        return self.opened.wall_us + monotonic_us - self.opened.monotonic_us


@dataclass
class Trace:
    """All files of a directory, by name. `notes`: what was wrong with any of them, those left out included."""

    directory: str
    files: list[TraceFile]
    notes: list[str]


def read_trace(directory: str | os.PathLike[str]) -> Trace:
    """Read all that is there by now; LoomError where there is no trace."""
    directory = os.fspath(directory)
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(SUFFIX))
    except OSError as error:
        raise LoomError(f"{directory} cannot be read as a trace directory: {error.strerror}") from None
    files: list[TraceFile] = []
    notes: list[str] = []
    for name in names:
        try:
            file = read_file(os.path.join(directory, name))
        except LoomError as error:
            notes.append(str(error))
            continue
        files.append(file)
        if file.note:
            notes.append(f"{file.path}: {file.note}")
    if not files:
        why = f" ({'; '.join(notes)})" if notes else f": no file in it ends in {SUFFIX}"
        raise LoomError(f"{directory} holds no trace{why}. Name the directory that was given to Client.set_trace")
    return Trace(directory, files, notes)


def read_file(path: str) -> TraceFile:
    """Read one file as far as it can be read; LoomError where it is no file of a trace, or of another version."""
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise LoomError(f"{path} cannot be read: {error.strerror}") from None
    frames = _frames(data)
    try:
        opened = _decode(data[slice(*next(frames))])
    except (StopIteration, ValueError):
        opened = None
    if not isinstance(opened, Opened):
        raise LoomError(f"{path} is no file of a trace, or was cut off in its first record")
    if opened.version != VERSION:
        raise LoomError(f"{path} was written by another version of Loom ({opened.version}, this one reads {VERSION})")
    file = TraceFile(path, opened)
    _take_records(file, data, frames)
    return file


def _frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each record that is whole."""
    start = _LENGTH_BYTES
    while start <= len(data):
        end = start + _get_length(data, start - _LENGTH_BYTES)[0]
        if end == start or end > len(data):  # nothing has no bytes: that is what a file system left that went down
            return
        yield start, end
        start = end + _LENGTH_BYTES


def _take_records(file: TraceFile, data: bytes, frames: Iterator[tuple[int, int]]) -> None:
    view = memoryview(data)
    last = _LENGTH_BYTES + _get_length(data)[0]
    n_damaged = 0
    for start, end in frames:
        last = end
        try:
            record = _decode(view[start:end])
        except ValueError:  # msgspec's errors and UnicodeDecodeError; the next record may be whole
            n_damaged += 1
            continue
        if _is_sound(record):
            file.records.append(record)
        else:
            n_damaged += 1
    notes = []
    if n_damaged:
        notes.append(f"{n_damaged} damaged record{'s' if n_damaged > 1 else ''} left out")
    if last < len(data):
        notes.append(f"cut off inside a record: {len(data) - last} bytes left out")
    file.complete = not notes
    file.note = "; ".join(notes)


def _is_sound(record: AnyRecord) -> bool:
    """Columns are of one length, rows are whole and their times possible: who reads them need not look."""
    if isinstance(record, TasksRan):
        return not len(record.rows) % RAN.size and max(map(max, _times_of(record.rows)), default=0) <= MAX_US
    if isinstance(record, PlanGrew):
        n = len(record.symbol_of) // 2
        halves = (record.symbol_of, record.label_of)
        return all(len(h) == 2 * n for h in halves) and len(record.input_ends) == 4 * n and not len(record.inputs) % 8
    return True


def rows_of(record: TasksRan) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Task, kind, lane, begun_us, duration_us, size_bytes of each."""
    return RAN.iter_unpack(record.rows)
