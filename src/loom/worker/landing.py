"""Where large objects of other workers land: mapped files of the store, so that nothing is copied afterwards."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from loom.data.buffers import FileSegment, Segment, StoredFile
from loom.worker.store import Store


class FileLanding:
    def __init__(self, store: Store) -> None:
        self._store = store

    def land(self, size_bytes: int) -> tuple[memoryview, Callable[[], Segment]]:
        """A buffer to fill, and what to call when it is full. OSError where there is no room for it."""
        stored = StoredFile(self._store.new_file(), size_bytes)
        descriptor = os.open(stored.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)  # a full file system is an error here, not a SIGBUS later
            buffer = mmap.mmap(descriptor, size_bytes)
        finally:
            os.close(descriptor)
        return memoryview(buffer), lambda: FileSegment(stored, 0, size_bytes)
