"""Where large objects of other workers land: files of the store, written as the bytes come."""

from __future__ import annotations

import errno
import os

from loom.data.buffers import FileSegment, Segment, StoredFile, write_segments
from loom.data.space import free_bytes, is_full
from loom.worker.store import Store


class FileLanding:
    """One object on its way into a file. OSError where there is no room for it."""

    def __init__(self, store: Store, size_bytes: int) -> None:
        self._store = store
        self._size_bytes = size_bytes
        self._taken_bytes = 0
        self._file: StoredFile | None = None
        self._file, self._descriptor = store.create(size_bytes, self._begin)

    def _begin(self, descriptor: int) -> int:
        """Begin a file with what has been taken. Looks first, so as not to fill up for nothing what others need."""
        if free_bytes(f"/proc/self/fd/{descriptor}") < self._size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._file is not None:
            taken = StoredFile(self._file.path, self._taken_bytes)
            taken.keep()
            write_segments(descriptor, [FileSegment(taken, 0, taken.size)])
        return os.dup(descriptor)

    def take(self, piece: memoryview) -> None:
        try:
            write_segments(self._descriptor, [piece])
        except OSError as error:
            if not is_full(error):
                raise
            self._move()  # others have taken the room meanwhile
            write_segments(self._descriptor, [piece])
        self._taken_bytes += len(piece)

    def _move(self) -> None:
        """Go on in another place, one that has room for all of it."""
        self._file, descriptor = self._store.create(self._size_bytes, self._begin)
        os.close(self._descriptor)
        self._descriptor = descriptor

    def end(self) -> Segment:
        assert self._file is not None
        os.close(self._descriptor)
        return FileSegment(self._file, 0, self._size_bytes)

    def drop(self) -> None:
        os.close(self._descriptor)
        self._file = None
