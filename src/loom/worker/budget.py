"""What a worker's objects take in memory, and what they may take.

Two things count: small objects, which are bytes in the process, and the files of large ones where their directory is
in memory (tmpfs). A file counts once, however many objects share it, from when it is made until its last reference
goes or it has been moved to disk.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from loom.data.buffers import StoredFile
from loom.data.space import free_bytes
from loom.limits import MIB
from loom.resources import size_text
from loom.worker.disk import is_in_memory
from loom.worker.hardware import memory_bytes

_DEFAULT_PART: Final = 0.6  # of the memory that this process may use: the rest is for what runs
_FREE_PART: Final = 0.8  # of what is free in the file system at the start: the rest is for what is being written
_RESERVE_PART: Final = 0.1  # of it: where less is free, others have taken it or are writing much, and objects make room
_AGAIN_PART: Final = 0.9  # below it the worker is no longer over its budget
_SPILL_PART: Final = 0.8  # cold objects go until so much is left, so that the next one does not begin it again

_LONG_TO_REMOVE_BYTES: Final = 1 * MIB
_PAGE_BYTES: Final = 4096

_log = logging.getLogger(__name__)


class Budget:
    """`directory`: the files below it count; where it is empty none do. Files may go in any thread.

    `reserve_bytes` of its file system are to stay free, whoever uses it.
    """

    def __init__(self, limit_bytes: int, directory: str = "", reserve_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self.small_bytes = 0  # the store adds and takes away
        self.file_bytes = 0
        self.over = False
        """Above the budget, and not yet well below it again."""
        self.remove: Callable[[str], None] | None = None
        """Removes a large file in a thread: that takes a millisecond for some MiB, on a busy disk more."""
        self._below = f"{directory}/" if directory else "\0"
        self._cold: OrderedDict[int, weakref.ref[StoredFile]] = OrderedDict()  # may be moved, coldest first
        self._lock = threading.RLock()  # re-entrant: a collection inside may run StoredFile.__del__

    @property
    def used_bytes(self) -> int:
        return self.small_bytes + self.file_bytes

    def excess_bytes(self) -> int:
        """What has to go to disk."""
        if self.over:
            return self.used_bytes - int(self.limit_bytes * _SPILL_PART)
        if not self._reserve_bytes or not self.file_bytes:
            return 0
        return min(self.file_bytes, self._reserve_bytes - free_bytes(self._below))

    def look(self) -> bool:
        """Whether `over` has changed."""
        used_bytes = self.small_bytes + self.file_bytes
        over = used_bytes > self.limit_bytes * (_AGAIN_PART if self.over else 1)
        changed, self.over = over is not self.over, over
        return changed

    def has_room(self, size_bytes: int) -> bool:
        """Whether a file of this size may be made in the directory."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            return False
        return not self._reserve_bytes or free_bytes(self._below) >= self._reserve_bytes + size_bytes

    # -- Files --------------------------------------------------------------------------------------------------------

    def count(self, file: StoredFile) -> None:
        """From now on the file counts. It is not moved before it has been used."""
        if file.account is None and file.owned:
            file.account = self
            if file.path.startswith(self._below):
                with self._lock:
                    self.file_bytes += _pages_of(file)

    def used(self, file: StoredFile) -> None:
        """The file is part of an object in the store, which has just been used."""
        if file.account is self and file.path.startswith(self._below):
            key = id(file)
            with self._lock:
                if key in self._cold:
                    self._cold.move_to_end(key)
                else:
                    self._cold[key] = weakref.ref(file)

    def gone(self, file: StoredFile) -> bool:
        if file.path.startswith(self._below):
            with self._lock:
                self._cold.pop(id(file), None)
                self.file_bytes -= _pages_of(file)
        if self.remove is None or not file.owned or file.size < _LONG_TO_REMOVE_BYTES:
            return False
        self.remove(file.path)
        return True

    def take_coldest(self, size_bytes: int) -> list[StoredFile]:
        """Files to be moved to disk, about so many bytes of those not used for longest; `moved` or `used` follows.

        What a running program has as its input stays.
        """
        taken: list[StoredFile] = []
        for key in list(self._cold):
            if size_bytes <= 0:
                break
            reference = self._cold.get(key)
            file = reference() if reference is not None else None
            if file is not None and not file.users:
                self._cold.pop(key, None)
                taken.append(file)
                size_bytes -= _pages_of(file)
        return taken

    def moved(self, file: StoredFile, path: str) -> str:
        """The file has been copied to `path` on disk; returns the old path, to be removed."""
        with self._lock:
            self.file_bytes -= _pages_of(file)
            return file.move_to(path)


def _pages_of(file: StoredFile) -> int:
    """What the file takes in memory."""
    return -(-file.size // _PAGE_BYTES) * _PAGE_BYTES


def choose_budget(wanted_bytes: int | None, directory: str) -> Budget:
    """The budget of a worker with this directory; `wanted_bytes` None: a part of what this process may use."""
    limit_bytes = int(memory_bytes() * _DEFAULT_PART) if wanted_bytes is None else wanted_bytes
    if not is_in_memory(directory):
        return Budget(limit_bytes)
    room_bytes = int(free_bytes(directory) * _FREE_PART)
    if wanted_bytes is not None and room_bytes < wanted_bytes:
        _log.warning(
            "--memory %s: %s has room for %s of objects; the worker keeps to that",
            size_text(wanted_bytes),
            directory,
            size_text(room_bytes),
        )
    return Budget(min(limit_bytes, room_bytes), directory, int(free_bytes(directory) * _RESERVE_PART))
