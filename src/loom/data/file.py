"""File object: a handle to a file outside of Loom; only its path travels."""

import os

from loom.data.base import DObject
from loom.data.buffers import FileSegment, Segment, StoredFile


class FileObject(DObject):
    """An external file that every worker sees under the same path.

    The size is taken when the object is made (OSError where there is no such file) and carried along: it is the size
    even if the file grows, and reading a file that has shrunk raises OSError.
    """

    __slots__ = ("_stored", "path")
    symbol = "loom/file"

    def __init__(self, path: bytes, size_bytes: int | None = None) -> None:
        self.path = path
        size = os.stat(path).st_size if size_bytes is None else size_bytes
        self._stored = StoredFile(os.fsdecode(path), size)
        self._stored.keep()

    def size(self) -> int:
        return self._stored.size

    def segments(self) -> list[Segment]:
        return [FileSegment(self._stored, 0, self._stored.size)]
