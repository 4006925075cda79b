"""Objects by id. Small ones are bytes in memory, large ones files of the store directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Final, TypeAlias

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, Segment, StoredFile, segment_size, total_size, write_segments
from loom.data.pack import describe, from_packed, rebuild, to_packed
from loom.limits import MAX_HANDOVER_FDS, SMALL_OBJECT_BYTES

_NO_LINK: Final = frozenset({errno.EXDEV, errno.ENOENT, errno.EPERM, errno.EMLINK, errno.EINVAL})


_Large: TypeAlias = tuple[bytes, list[Segment]]  # header, and segments that all lie in few files


class Store:
    """`directory` is the worker's own; files in it go with the last object that shares them."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._objects: dict[int, bytes | DataObject | _Large] = {}  # packed, small, large
        self._files = 0

    def new_file(self, size_hint: int = 0) -> str:
        """Path of a file that does not exist yet."""
        self._files += 1
        return f"{self._directory}/o{self._files}"

    def put_packed(self, object_id: int, packed: bytes) -> None:
        self._objects[object_id] = packed

    def put(self, object_id: int, value: DataObject) -> None:
        """Keep an object; large amounts of bytes in memory go to a file. OSError where there is no room for it."""
        header, segments = describe(value)
        if total_size(segments) <= SMALL_OBJECT_BYTES:
            self._objects[object_id] = value
        else:
            self._objects[object_id] = header, self._settle(segments)

    def drop(self, object_id: int) -> None:
        self._objects.pop(object_id, None)

    def get(self, object_id: int) -> DataObject:
        value = self._objects[object_id]
        if isinstance(value, bytes):
            return from_packed(value)
        return rebuild(*value) if isinstance(value, tuple) else value

    def lookup(self, object_id: int) -> bytes | _Large | None:
        """The object as it travels: packed whole where it is small, else header and segments of files."""
        value = self._objects.get(object_id)
        return to_packed(value) if isinstance(value, DataObject) else value

    def _settle(self, segments: Sequence[Segment]) -> list[Segment]:
        """The same bytes in few files: those in memory go to one file, and all of them where there are too many."""
        in_memory = [s for s in segments if not isinstance(s, FileSegment)]
        files = {id(s.file) for s in segments if isinstance(s, FileSegment)}
        if len(files) + bool(in_memory) > MAX_HANDOVER_FDS:
            return [self._write(segments)]
        if not in_memory:
            return list(segments)
        file = self._write(in_memory).file
        settled: list[Segment] = []
        written = offset = 0
        for segment in segments:  # what follows on each other in memory does so in the file
            if not isinstance(segment, FileSegment):
                written += segment_size(segment)
                continue
            if written > offset:
                settled.append(FileSegment(file, offset, written - offset))
                offset = written
            settled.append(segment)
        if written > offset:
            settled.append(FileSegment(file, offset, written - offset))
        return settled

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
                # With a directory descriptor CPython calls linkat, which follows the link; without one, link, which
                # does not. The path is absolute, so which directory it is does not matter.
                os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
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
