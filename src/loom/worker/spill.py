"""Moves cold objects from memory to disk while the worker is over its budget, or its file system in memory nearly full.

The copying and the removing of what was copied are done by a thread. The loop decides what goes, and switches each
object once its copy is there: so whatever the loop does with one, it is in one place. Who has the old file open, mapped
or under another name keeps it; its memory is free when they are done with it. Small objects, if large ones do not
suffice, go many to a file.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, NamedTuple

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, Segment, StoredFile, write_segments
from loom.data.pack import to_packed
from loom.data.space import is_full, space_text
from loom.limits import MIB
from loom.worker.budget import Budget
from loom.worker.store import Store

_BATCH_BYTES: Final = 16 * MIB  # copied before the loop looks at it again: what has been dropped need not be copied
_THREADS: Final = 2  # one copies, one removes files meanwhile
_PAUSE_S: Final = 1.0  # after a failure
_LOOK_S: Final = 0.1  # at what is free in memory, where programs may write

_log = logging.getLogger(__name__)

_Small = tuple[int, bytes | DataObject]


class _Copied(NamedTuple):
    """What has come of a batch: of `files` as many as have `paths`, and of `small` objects all (`segments`) or none."""

    files: list[StoredFile]
    paths: list[str]
    small: list[_Small]
    segments: list[FileSegment]
    error: OSError | None


class Spiller:
    """`directory` is on disk; where it is empty nothing is moved.

    `changed` is called when the budget's `over` has changed.
    """

    def __init__(
        self,
        budget: Budget,
        store: Store,
        directory: str,
        changed: Callable[[], None],
    ) -> None:
        self._budget = budget
        self._store = store
        self._directory = directory
        self._changed = changed
        self._numbers = itertools.count(1)
        self._threads = ThreadPoolExecutor(_THREADS, "loom-spill") if directory else None
        if directory:
            budget.remove = self._remove
        self._busy = False  # copying, or pausing after a failure
        self._timer: asyncio.TimerHandle | None = None
        self._closed = threading.Event()
        self._said = ""

    def look(self) -> None:
        """Called when something may have been stored or dropped; cheap where there is nothing to do."""
        budget = self._budget
        if budget.look():
            self._changed()
        if self._threads is None or self._busy:
            return
        if budget.over:
            self._spill(budget.excess_bytes())
        elif budget.file_bytes and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look_at_reserve)

    def close(self) -> None:
        """Nothing is moved any more."""
        self._closed.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _remove(self, path: str) -> None:
        assert self._threads is not None
        try:
            self._threads.submit(_remove_all, [path])
        except RuntimeError:  # closed
            _remove_all([path])

    def _look_at_reserve(self) -> None:
        self._timer = None
        if not self._busy and (excess_bytes := self._budget.excess_bytes()) > 0:
            self._spill(excess_bytes)
        self.look()

    def _spill(self, excess_bytes: int) -> None:
        assert self._threads is not None
        wanted_bytes = min(excess_bytes, _BATCH_BYTES)
        files = self._budget.take_coldest(wanted_bytes)
        small = [] if files or not self._budget.over else self._store.oldest_small(wanted_bytes)
        if not files and not small:
            return
        self._busy = True
        loop = asyncio.get_running_loop()
        if files:
            copying = self._threads.submit(_copy_files, files, [self._new_path() for _ in files], self._closed)
        else:
            copying = self._threads.submit(_copy_small, small, self._new_path())
        copying.add_done_callback(lambda done: self._in_loop(loop, done.result()))

    def _new_path(self) -> str:
        return f"{self._directory}/s{next(self._numbers)}"

    def _in_loop(self, loop: asyncio.AbstractEventLoop, copied: _Copied) -> None:
        with suppress(RuntimeError):  # the loop is closed: the worker has ended
            loop.call_soon_threadsafe(self._on_copied, copied)

    def _on_copied(self, copied: _Copied) -> None:
        self._busy = False
        if self._closed.is_set():
            return
        self._store.forget_rebuilt()
        superfluous = []
        for file, path in zip(copied.files, copied.paths, strict=False):
            if file.users:  # a program has been given it meanwhile
                superfluous.append(path)
                self._budget.used(file)
            else:
                superfluous.append(self._budget.moved(file, path))
        for file in copied.files[len(copied.paths) :]:
            self._budget.used(file)
        for (object_id, value), segment in zip(copied.small, copied.segments, strict=False):
            self._store.small_moved(object_id, value, segment)
        if superfluous:
            assert self._threads is not None
            self._threads.submit(_remove_all, superfluous)
        if copied.error is not None:
            self._on_error(copied.error)
        self.look()

    def _on_error(self, error: OSError) -> None:
        text = space_text(self._directory) if is_full(error) else str(error)
        if text != self._said:
            self._said = text
            _log.warning("objects cannot be moved from memory to disk: %s", text)
        self._busy = True
        asyncio.get_running_loop().call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._busy = False
        if not self._closed.is_set():
            self.look()


def _freed(error: OSError) -> OSError:
    """Without the frames that it came through, and what it was raised for: they would keep what failed."""
    error.__context__ = None
    return error.with_traceback(None)


def _copy_files(files: list[StoredFile], paths: list[str], closed: threading.Event) -> _Copied:
    """Copy files until one fails, or the worker ends."""
    for position, (file, path) in enumerate(zip(files, paths, strict=True)):
        try:
            _write(path, _pieces(file, closed))
        except OSError as error:
            return _Copied(files, paths[:position], [], [], _freed(error))
    return _Copied(files, paths, [], [], None)


def _copy_small(small: list[_Small], path: str) -> _Copied:
    """Pack objects into one file."""
    packed = [value if isinstance(value, bytes) else to_packed(value) for _, value in small]
    stored = StoredFile(path, sum(map(len, packed)))
    try:
        _write(path, packed)
    except OSError as error:
        return _Copied([], [], small, [], _freed(error))
    ends = itertools.accumulate(map(len, packed))
    segments = [FileSegment(stored, end - len(one), len(one)) for end, one in zip(ends, packed, strict=True)]
    return _Copied([], [], small, segments, None)


def _pieces(file: StoredFile, closed: threading.Event) -> Iterator[FileSegment]:
    for offset in range(0, file.size, _BATCH_BYTES):
        if closed.is_set():
            raise OSError(errno.ECANCELED, "the worker ends")
        yield FileSegment(file, offset, min(_BATCH_BYTES, file.size - offset))


def _write(path: str, segments: Iterable[Segment]) -> None:
    """A new file with these bytes, or none."""
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_segments(target, segments)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(target)


def _remove_all(paths: list[str]) -> None:
    for path in paths:
        with suppress(OSError):
            os.unlink(path)
