"""Objects by id. Small ones are bytes in memory, large ones files of the store directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, Segment, StoredFile, segment_size, total_size, write_segments
from loom.data.pack import describe, from_packed, rebuild, to_packed
from loom.limits import MAX_HANDOVER_FDS, SMALL_OBJECT_BYTES

_NO_LINK: Final = frozenset({errno.EXDEV, errno.ENOENT, errno.EPERM, errno.EMLINK, errno.EINVAL})


class Store:
    """`directory` is the worker's own; files in it go with the last object that shares them."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._objects: dict[int, bytes | DataObject] = {}
        self._files = 0

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, object_id: int) -> bool:
        return object_id in self._objects

    def new_file(self, size_hint: int = 0) -> str:
        """Path of a file that does not exist yet."""
        self._files += 1
        return f"{self._directory}/o{self._files}"

    def put_packed(self, object_id: int, packed: bytes) -> None:
        self._objects[object_id] = packed

    def put(self, object_id: int, value: DataObject) -> None:
        """Keep an object; large amounts of bytes in memory go to a file. OSError where there is no room for it."""
        self._objects[object_id] = self._settle(value)

    def drop(self, object_id: int) -> None:
        self._objects.pop(object_id, None)

    def clear(self) -> None:
        self._objects.clear()

    def get(self, object_id: int) -> DataObject:
        value = self._objects[object_id]
        return from_packed(value) if isinstance(value, bytes) else value

    def lookup(self, object_id: int) -> bytes | tuple[bytes, list[Segment]] | None:
        """The object as it travels: packed whole where it is small, else header and segments of files."""
        value = self._objects.get(object_id)
        if value is None or isinstance(value, bytes):
            return value
        header, segments = describe(value)
        if total_size(segments) <= SMALL_OBJECT_BYTES:
            return to_packed(value)
        return header, segments

    def _settle(self, value: DataObject) -> DataObject:
        """The same object with all its bytes in few files, unless it is small."""
        header, segments = describe(value)
        if total_size(segments) <= SMALL_OBJECT_BYTES:
            return value
        in_memory = [s for s in segments if not isinstance(s, FileSegment)]
        files = {id(s.file) for s in segments if isinstance(s, FileSegment)}
        if not in_memory:
            if len(files) <= MAX_HANDOVER_FDS:
                return value
            return rebuild(header, [self._write(segments)])
        if len(files) >= MAX_HANDOVER_FDS:
            return rebuild(header, [self._write(segments)])
        written = self._write(in_memory)
        settled: list[Segment] = []
        offset = 0
        for segment in segments:
            if isinstance(segment, FileSegment):
                settled.append(segment)
            else:
                size = segment_size(segment)
                settled.append(FileSegment(written.file, offset, size))
                offset += size
        return rebuild(header, settled)

    def _write(self, segments: Sequence[Segment]) -> FileSegment:
        stored = StoredFile(self.new_file(), total_size(segments))
        descriptor = os.open(stored.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_segments(descriptor, segments)
        finally:
            os.close(descriptor)
        return FileSegment(stored, 0, stored.size)

    # -- Arrivals from other workers ----------------------------------------------------------------------------------

    def adopt(self, descriptor: int, size_bytes: int) -> Segment:
        """Make a file that was handed over one of our own, without copying where the file systems allow it.

        Takes the descriptor.
        """
        path = self.new_file()
        try:
            try:
                os.link(f"/proc/self/fd/{descriptor}", path, follow_symlinks=True)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                self._copy(descriptor, path, size_bytes)
        finally:
            os.close(descriptor)
        return FileSegment(StoredFile(path, size_bytes), 0, size_bytes)

    @staticmethod
    def _copy(source: int, path: str, size_bytes: int) -> None:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            offset = 0
            while offset < size_bytes:
                sent = os.sendfile(target, source, offset, size_bytes - offset)
                if not sent:
                    raise OSError(errno.EIO, "an object that was handed over is shorter than announced")
                offset += sent
        finally:
            os.close(target)
