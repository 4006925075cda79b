"""Writes one file of a trace. Whatever happens to the file, the process that is traced goes on."""

from __future__ import annotations

import logging
import os
import re
import struct
import time
from typing import Final

from msgspec.msgpack import Encoder

from loom.files import OWN_FOLDER, make_folders
from loom.trace.records import SUFFIX, VERSION, AnyRecord, Opened

_log = logging.getLogger(__name__)

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME_CHARS: Final = 200
_FULL_BYTES: Final = 1 << 20  # a buffer above that is written out, whoever waits or not
_put_length: Final = struct.Struct("<I").pack_into
_encode_into: Final = Encoder().encode_into


class TraceWriter:
    """Appends to `<directory>/<name>.trace`; where that is there already, to `<name>-2.trace` and so on. Only this user
    can read it: it says what his tasks were, and what they died of.

    `flush` once a turn, before anybody hears of what happened in it. After the first error (a warning in the log)
    `broken` is true and everything that is added goes nowhere.
    """

    def __init__(self, directory: str, name: str, opened: Opened) -> None:
        self.directory = directory
        self.path = ""
        self.broken = False
        self._fd = -1
        self._buffer = bytearray()
        try:
            make_folders(directory, OWN_FOLDER)
            self._open(_UNSAFE.sub("-", name)[:_MAX_NAME_CHARS])
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            self._break(error)
        else:
            self.add(opened)
            self.flush()

    def _open(self, name: str) -> None:
        count = 1
        while self._fd < 0:
            path = f"{self.directory}/{name}{'' if count == 1 else f'-{count}'}{SUFFIX}"
            try:
                self._fd = os.open(path, _FLAGS, 0o600)
            except FileExistsError:
                count += 1
            else:
                self.path = path

    def is_there(self) -> bool:
        """Whether what is written can be found: nobody has removed the file."""
        try:
            return not self.broken and os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except OSError:
            return False

    def add(self, record: AnyRecord) -> None:
        """Put a record behind those of before."""
        buffer = self._buffer
        start = len(buffer)
        buffer += b"\0\0\0\0"
        _encode_into(record, buffer, start + 4)
        _put_length(buffer, start, len(buffer) - start - 4)
        if len(buffer) > _FULL_BYTES:
            self._write()

    def flush(self) -> None:
        """Write out what was added; nothing where nothing was."""
        if self._buffer:
            self._write()

    def close(self) -> None:
        """Flush and close; twice is once."""
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self) -> None:
        buffer = self._buffer
        if not self.broken:
            try:
                while buffer:  # less than all is written where the disk is nearly full: the next call says so
                    del buffer[: os.write(self._fd, buffer)]
            except OSError as error:
                self._break(error)
        buffer.clear()

    def _break(self, error: Exception) -> None:
        self.broken = True
        _log.warning("no trace is written any more to %s: %s", self.path or self.directory, error)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def now_us() -> int:
    """The host's monotonic clock, as times stand in traces."""
    return time.monotonic_ns() // 1000


def opened_now(role: str, worker: int, name: str, cpus: int, extras: list[tuple[str, int]], incarnation: int) -> Opened:
    """The first record of a file that begins now."""
    return Opened(VERSION, role, worker, name, cpus, extras, now_us(), time.time_ns() // 1000, incarnation)
