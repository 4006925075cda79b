"""Where large objects of other workers land: mapped files of the store, so that nothing is copied afterwards."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from loom.data.buffers import FileSegment, Segment
from loom.worker.store import Store


class FileLanding:
    def __init__(self, store: Store) -> None:
        self._store = store

    def land(self, size_bytes: int) -> tuple[memoryview, Callable[[], Segment]]:
        """A buffer to fill, and what to call when it is full. OSError where there is no room for it."""
        stored, buffer = self._store.create(size_bytes, lambda descriptor: _map(descriptor, size_bytes))
        return memoryview(buffer), lambda: FileSegment(stored, 0, size_bytes)


def _map(descriptor: int, size_bytes: int) -> mmap.mmap:
    os.posix_fallocate(descriptor, 0, size_bytes)  # a full file system is an error here, not a SIGBUS later
    return mmap.mmap(descriptor, size_bytes)
