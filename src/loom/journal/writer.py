"""Writes a journal, in a thread of its own: whatever has gathered while one record went to disk is the next record."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from msgspec.msgpack import Encoder

from loom import failpoints
from loom.facts import AnyFact, Fact
from loom.journal.compaction import Compaction
from loom.journal.framing import frame, list_head
from loom.journal.opening import open_journal, write_all
from loom.limits import MIB

_log = logging.getLogger(__name__)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_RETRY_S: Final = 0.5  # room on a full disk is made by people or by what runs there
_LOOK_S: Final = 0.05  # whether a compaction has come to its end
_RECORD_BYTES: Final = 64 * MIB  # what has gathered above that waits for the next record
_FIX_ARRAY: Final = 15  # msgpack: up to so many items the head of an array is one byte
_ARRAY_16: Final = 0xFFFF  # and up to so many it is three, else five


class _Waiting(NamedTuple):
    """What one `append` brought, encoded."""

    ticket: int
    n_facts: int
    facts: memoryview


class JournalWriter:
    """The journal at `path`, from opening to `close`.

    Opening calls `apply` with each fact that is there, and raises LoomError where the file is in use, damaged, not a
    journal, of another format, or cannot be read or written. `is_new`: nothing was there. `torn_bytes`: so much of a
    record that was never complete was cut off, and is kept in `<path>.torn`.

    Called from the writer's thread, with nothing held:
    `on_durable(ticket)`: all facts up to that ticket are on disk.
    `on_stalled(reason)`: the disk is full; it is tried again and again, and `on_stalled("")` says that it went well.
    `on_broken(error)`: nothing is written any more, and what was not said to be durable may or may not be on disk.
    After a failed write or sync, the pages that the kernel still shows need not be what the disk holds, so the file
    has to be opened anew.
    """

    def __init__(
        self,
        path: str,
        apply: Callable[[AnyFact], object],
        *,
        on_durable: Callable[[int], object],
        on_stalled: Callable[[str], object],
        on_broken: Callable[[Exception], object],
        compaction: Compaction | None = None,
        write: Callable[..., int] = os.pwrite,
        sync: Callable[[int], None] = os.fdatasync,
        retry_s: float = _RETRY_S,
    ) -> None:
        self.path = os.path.realpath(path)  # a link stays one when the file is replaced
        opened = open_journal(self.path, apply)
        self.is_new = opened.is_new
        self.torn_bytes = opened.torn_bytes
        self.broken = False
        self._file = opened.file
        self._on_durable, self._on_stalled, self._on_broken = on_durable, on_stalled, on_broken
        self._compaction = compaction or Compaction()
        self._write_at, self._sync, self._retry_s = write, sync, retry_s
        self._encode = Encoder().encode
        self._waiting: SimpleQueue[_Waiting | threading.Event | None] = SimpleQueue()
        self._ticket = 0
        self._durable = 0
        self._stalled = False
        self._closing = threading.Event()
        self._give_up_at_s = 0.0  # set before `_closing` is
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def durable(self) -> int:
        """The highest ticket of which the facts are on disk."""
        return self._durable

    def append(self, facts: Sequence[Fact]) -> int:
        """Put facts behind those of before, without waiting; from one thread. Gives their ticket, 1 the first time.

        A writer that is broken or closed takes them, and its `durable` does not reach that ticket.
        """
        assert facts, "nothing to append"
        self._ticket += 1
        if not self.broken:
            encoded = memoryview(self._encode(facts))
            count = len(facts)
            self._waiting.put(
                _Waiting(self._ticket, count, encoded[1 if count <= _FIX_ARRAY else 3 if count <= _ARRAY_16 else 5 :])
            )
        return self._ticket

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was appended is on disk; whether it is."""
        ticket = self._ticket
        done = threading.Event()
        self._waiting.put(done)
        deadline_s = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            if done.wait(min(_LOOK_S, timeout_s)):
                break
        return self._durable >= ticket

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what waits, end the thread, unlock the file. Whether all that was appended is on disk."""
        if not self._closing.is_set():
            self._give_up_at_s = time.monotonic() + timeout_s
            self._closing.set()
            self._waiting.put(None)
        self._thread.join(timeout_s + self._retry_s)
        return self._durable >= self._ticket

    # -- The thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            if not isinstance(error, OSError):
                _log.exception("the journal's thread")
            self.broken = True
            self._on_broken(error)
        finally:
            self._compaction.abandon(self._file)
            os.close(self._file.fd)

    def _turn(self) -> bool:
        """Write what waits, or wait for it. False: no more comes."""
        compaction = self._compaction
        gathered: list[_Waiting] = []
        flushed: list[threading.Event] = []
        goes_on = self._gather(gathered, flushed, None if compaction.process is None else _LOOK_S)
        if gathered and not self._commit(gathered):
            return False
        for event in flushed:
            event.set()
        if compaction.process is None:
            compaction.begin_if_large(self._file)
        elif compaction.process.poll() is not None:
            compaction.finish(self._file)
        return goes_on

    def _gather(self, gathered: list[_Waiting], flushed: list[threading.Event], timeout_s: float | None) -> bool:
        size_bytes = 0
        try:
            item = self._waiting.get(timeout=timeout_s)
            while item is not None:
                if isinstance(item, threading.Event):
                    flushed.append(item)
                else:
                    gathered.append(item)
                    size_bytes += len(item.facts)
                    if size_bytes >= _RECORD_BYTES:
                        return True
                item = self._waiting.get_nowait()
        except Empty:
            return True
        return False

    def _commit(self, gathered: list[_Waiting]) -> bool:
        """Bring them to disk as one record. False: the disk was full until it was time to give up."""
        file = self._file
        parts: list[bytes | memoryview] = [
            list_head(sum([item.n_facts for item in gathered])),
            *[item.facts for item in gathered],
        ]
        record = frame(file.seed, file.sequence, parts)
        while not self._write(record):
            if self._closing.wait(self._retry_s):
                time.sleep(self._retry_s)
                if time.monotonic() > self._give_up_at_s:
                    return False
        file.end += len(record)
        file.sequence += 1
        self._durable = gathered[-1].ticket
        self._on_durable(self._durable)
        return True

    def _write(self, record: bytes) -> bool:
        """False: the disk is full, and the file is as it was."""
        file = self._file
        try:
            failpoints.hit("journal-before-write")
            if failpoints.is_set("journal-half-written"):
                write_all(file.fd, record[: len(record) // 2], file.end)
                failpoints.hit("journal-half-written")
            write_all(file.fd, record, file.end, self._write_at)
            failpoints.hit("journal-before-sync")
            self._sync(file.fd)
            failpoints.hit("journal-synced")
        except OSError as error:
            if error.errno not in _FULL:
                raise
            os.ftruncate(file.fd, file.end)
            if not self._stalled:
                self._stalled = True
                self._on_stalled(f"the journal {self.path} cannot be written: {error.strerror}")
            return False
        if self._stalled:
            self._stalled = False
            self._on_stalled("")
        return True
