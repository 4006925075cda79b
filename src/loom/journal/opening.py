"""Opens a journal for writing: one server at a time, and only a file that is whole."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from loom.errors import LoomError
from loom.facts import AnyFact
from loom.journal.framing import FILE_ID_BYTES, HEADER_BYTES, header_bytes, seed_of
from loom.journal.reader import JournalReader
from loom.limits import MIB

_log = logging.getLogger(__name__)

_PATIENCE_S: Final = 1.0  # a server killed as it began a process leaves the lock to that one, until it runs its program
_PAUSE_S: Final = 0.01

TORN: Final = ".torn"
TARGET: Final = ".compact"  # what a compaction is writing


@dataclass
class JournalFile:
    """One that is locked. Records up to `end` are on disk; the next one has number `sequence`."""

    path: str
    fd: int
    seed: int
    end: int
    sequence: int


@dataclass
class Opened:
    file: JournalFile
    is_new: bool
    torn_bytes: int


def open_journal(path: str, apply: Callable[[AnyFact], object]) -> Opened:
    """Lock it, make it where there is none, call `apply` with each fact in it, cut off a torn tail (kept beside it).

    Raises LoomError: in use, damaged, not a journal, of another format, not to be read or written.
    """
    fd = lock_journal(path, make=True)
    try:
        with JournalReader(path, fd) as reader:
            for _offset, facts in reader.facts():
                for fact in facts:
                    apply(fact)
        remove_file(path + TARGET)  # of a server that was killed
        if reader.header is None:
            file = begin_journal(path, fd)
        else:
            if reader.torn_bytes:
                _cut(path, fd, reader.end, reader.torn_bytes)
            file = JournalFile(path, fd, reader.header.seed, reader.end, reader.sequence)
        sync_directory(path)
    except OSError as error:
        os.close(fd)
        raise LoomError(f"the journal {path} cannot be written: {error.strerror}") from error
    except BaseException:
        os.close(fd)
        raise
    return Opened(file, reader.header is None, reader.torn_bytes)


def lock_journal(path: str, make: bool = False) -> int:
    """A descriptor of the file, which nobody else can lock until it is closed."""
    deadline_s = time.monotonic() + _PATIENCE_S
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if make else 0)
    while True:
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError as error:
            what = f"the directory {os.path.dirname(path) or '.'} is not there" if make else "there is no such file"
            raise LoomError(f"the journal {path} cannot be opened: {what}") from error
        except OSError as error:
            raise LoomError(f"the journal {path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                os.close(fd)
                raise LoomError(
                    f"the journal {path} is in use by a server that runs. Stop that one first, or name another file"
                ) from None
            time.sleep(_PAUSE_S)
        except FileNotFoundError:
            pass  # the same as another file in its place: a server that ended just now had renamed a new one over it
        except OSError as error:
            os.close(fd)
            raise LoomError(f"the journal {path} cannot be locked: {error.strerror}") from error
        os.close(fd)


def begin_journal(path: str, fd: int) -> JournalFile:
    """Make an empty journal of an open file, whatever it held."""
    file_id = secrets.token_bytes(FILE_ID_BYTES)
    os.ftruncate(fd, 0)
    write_all(fd, header_bytes(file_id), 0)
    os.fdatasync(fd)
    return JournalFile(path, fd, seed_of(file_id), HEADER_BYTES, 1)


def write_all(fd: int, data: bytes | memoryview, offset: int, write: Callable[..., int] = os.pwrite) -> None:
    """Less than all is written at a time where the disk is nearly full: the next call says so."""
    written = write(fd, data, offset)
    while written < len(data):
        written += write(fd, memoryview(data)[written:], offset + written)


def sync_directory(path: str) -> None:
    """What name stands for which file outlives the machine."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_file(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _cut(path: str, fd: int, end: int, torn_bytes: int) -> None:
    try:
        _copy(fd, end, torn_bytes, path + TORN)
    except OSError as error:  # only people may want to see it, and it was never acknowledged
        _log.warning("what is cut off the journal cannot be kept in %s: %s", path + TORN, error.strerror)
    os.ftruncate(fd, end)
    os.fdatasync(fd)


def _copy(fd: int, offset: int, length: int, target: str) -> None:
    copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for done in range(0, length, MIB):
            write_all(copy, os.pread(fd, min(MIB, length - done), offset + done), done)
    finally:
        os.close(copy)
