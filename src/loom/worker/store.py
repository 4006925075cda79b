"""Objects by id. Small ones are bytes in memory, large ones files of the store directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias, TypeVar

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, Segment, StoredFile, segment_size, segment_view, total_size, write_segments
from loom.data.pack import describe, from_packed, has_many_nodes, rebuild, to_packed
from loom.data.plain import Plain
from loom.data.space import SPACE_TEXT, is_full, space_text
from loom.limits import MAX_HANDOVER_FDS, SMALL_OBJECT_BYTES
from loom.worker.budget import Budget

_NO_LINK: Final = frozenset({errno.EXDEV, errno.ENOENT, errno.EPERM, errno.EMLINK, errno.EINVAL})

_T = TypeVar("_T")
_Small: TypeAlias = bytes | DataObject  # packed, or as it was made
_Large: TypeAlias = tuple[bytes, list[Segment]]  # header, and segments that all lie in few files
_WORTH_MOVING_BYTES: Final = 1024  # of a small object that is moved to disk some 200 bytes stay


class NoRoom(OSError):
    """No file system of the store has room for an object; the text says what they have."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(errno.ENOSPC, text)
        self.path = path

    def __str__(self) -> str:
        return str(self.strerror)


class Store:
    """`directory` is the worker's own; files in it go with the last object that shares them.

    Where that is in memory, `spill_directory` is one on disk: what has no room in memory goes there. `no_room(path,
    size)` is called when an object has no room at all.
    """

    def __init__(
        self,
        directory: str,
        budget: Budget,
        spill_directory: str = "",
        no_room: Callable[[str, int], None] = lambda path, size_bytes: None,
    ) -> None:
        self._directories = (directory, spill_directory) if spill_directory else (directory,)
        self._budget = budget
        self._no_room = no_room
        self._objects: dict[int, _Small | _Large | FileSegment] = {}  # the last: small and packed, moved to disk
        self._rebuilt: tuple[_Large, DataObject] | None = None  # the last one of many nodes, which is rarely alone
        self._hopeless_bytes = 0  # of small objects that are none worth moving
        self._files = 0

    def put_packed(self, object_id: int, packed: bytes) -> None:
        if object_id in self._objects:
            self.drop(object_id)
        self._objects[object_id] = packed
        self._budget.small_bytes += len(packed)

    def put(self, object_id: int, value: DataObject) -> None:
        """Keep an object; large amounts of bytes in memory go to a file. OSError where there is no room for it."""
        if type(value) is Plain and value.size() <= SMALL_OBJECT_BYTES:  # most are
            if object_id in self._objects:
                self.drop(object_id)
            self._objects[object_id] = value
            self._budget.small_bytes += value.size()
            return
        header, segments = describe(value)
        size_bytes = total_size(segments)
        kept: _Small | _Large = value
        if size_bytes > SMALL_OBJECT_BYTES:
            segments = self._settle(segments)
            self._use(segments, new=True)
            kept = header, segments
        else:
            self._budget.small_bytes += size_bytes
        if object_id in self._objects:
            self.drop(object_id)
        self._objects[object_id] = kept

    def __contains__(self, object_id: int) -> bool:
        return object_id in self._objects

    def drop(self, object_id: int) -> None:
        value = self._objects.pop(object_id, None)
        if self._rebuilt is not None and value is self._rebuilt[0]:
            self._rebuilt = None
        if type(value) is bytes:  # most are
            self._budget.small_bytes -= len(value)
        elif type(value) is Plain:
            self._budget.small_bytes -= value.size()
        elif isinstance(value, DataObject):
            self._budget.small_bytes -= _small_bytes(value)

    def get(self, object_id: int) -> DataObject:
        value = self._objects[object_id]
        if isinstance(value, bytes):
            return from_packed(value)
        if isinstance(value, tuple):
            self._use(value[1])
            return self._rebuild_many(value) if has_many_nodes(value[0]) else rebuild(*value)
        return from_packed(bytes(segment_view(value))) if isinstance(value, FileSegment) else value

    def _rebuild_many(self, value: _Large) -> DataObject:
        """Some microseconds a node; who wants one element of an array mostly wants others, too."""
        if self._rebuilt is None or self._rebuilt[0] is not value:
            self._rebuilt = value, rebuild(*value)
        return self._rebuilt[1]

    def forget_rebuilt(self) -> None:
        """Files have been moved to disk: no mapping of them is to keep the memory."""
        self._rebuilt = None

    def lookup(self, object_id: int) -> bytes | _Large | None:
        """The object as it travels: packed whole where it is small, else header and segments of files."""
        value = self._objects.get(object_id)
        if value is None or type(value) is bytes:  # most are
            return value
        if isinstance(value, tuple):
            self._use(value[1])
        elif isinstance(value, FileSegment):
            return bytes(segment_view(value))
        return to_packed(value) if isinstance(value, DataObject) else value

    def _use(self, segments: Sequence[Segment], new: bool = False) -> None:
        """Say that these files are in use: what has not been for longest is moved to disk first."""
        last = None
        for segment in segments:
            if isinstance(segment, FileSegment) and segment.file is not last:
                last = segment.file
                if new:
                    self._budget.count(last)
                self._budget.used(last)

    # -- Small objects on disk ----------------------------------------------------------------------------------------

    def oldest_small(self, size_bytes: int) -> list[tuple[int, _Small]]:
        """Small objects of about so many bytes that came first, to be moved to disk."""
        if self._budget.small_bytes <= self._hopeless_bytes:
            return []
        found: list[tuple[int, _Small]] = []
        for object_id, value in self._objects.items():
            if isinstance(value, bytes | DataObject) and (own_bytes := _small_bytes(value)) >= _WORTH_MOVING_BYTES:
                found.append((object_id, value))
                size_bytes -= own_bytes
                if size_bytes <= 0:
                    break
        else:
            self._hopeless_bytes = self._budget.small_bytes - sum(_small_bytes(value) for _, value in found)
            self._hopeless_bytes += self._hopeless_bytes // 10
        return found

    def small_moved(self, object_id: int, value: _Small, segment: FileSegment) -> None:
        """The object is packed in a file on disk now; nothing happens if it has gone since it was `oldest_small`."""
        if self._objects.get(object_id) is value:
            self.drop(object_id)
            self._objects[object_id] = segment  # behind those that are still in memory

    # -- Files --------------------------------------------------------------------------------------------------------

    def new_file(self, size_bytes: int = 0) -> str:
        """Path of a file that does not exist yet, in a directory where so many bytes have room now."""
        return self._new_path(self._places(size_bytes)[0])

    def _new_path(self, directory: str) -> str:
        self._files += 1
        return f"{directory}/o{self._files}"

    def _places(self, size_bytes: int) -> Sequence[str]:
        """The directories, in the order in which to try them."""
        if len(self._directories) == 1:
            return self._directories
        return self._directories if self._budget.has_room(size_bytes) else self._directories[::-1]

    def create(self, size_bytes: int, fill: Callable[[int], _T]) -> tuple[StoredFile, _T]:
        """A new file, and what `fill` returned, which is given its descriptor. NoRoom where there is none."""
        places = self._places(size_bytes)
        for directory in places:
            stored = StoredFile(self._new_path(directory), size_bytes)
            try:
                descriptor = os.open(stored.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    made = fill(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                if not is_full(error):
                    raise
                del stored  # and what has been written: others are to have the room
            else:
                self._budget.count(stored)
                return stored, made
        self._no_room(places[-1], size_bytes)
        raise NoRoom(places[-1], space_text(*self._directories))  # held by no local

    def error_text(self, error: BaseException) -> str:
        """What is said of an error; where there was no room for an object, what the file systems have."""
        if is_full(error) and not isinstance(error, NoRoom):
            error = NoRoom(self._directories[0], space_text(*self._directories))
            self._no_room(error.path, 0)
        return str(error) or type(error).__name__

    def heard(self, error: str) -> None:
        """A task has failed with this error: it may have found no room for what it wrote here."""
        if SPACE_TEXT in error:
            for directory in self._directories:
                if os.path.dirname(directory) in error:
                    self._no_room(directory, 0)

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
        size_bytes = total_size(segments)
        stored, _ = self.create(size_bytes, lambda descriptor: write_segments(descriptor, segments))
        return FileSegment(stored, 0, size_bytes)

    # -- Arrivals from other workers ----------------------------------------------------------------------------------

    def adopt(self, descriptor: int, size_bytes: int) -> Segment:
        """Make a file that was handed over one of our own, without copying where the file systems allow it.

        Takes the descriptor.
        """
        try:
            for directory in self._directories:  # what another worker has moved to disk is linked there
                path = self._new_path(directory)
                with suppress(_CannotLink):
                    _link(descriptor, path)
                    stored = StoredFile(path, size_bytes)
                    self._budget.count(stored)
                    return FileSegment(stored, 0, size_bytes)
            stored, _ = self.create(size_bytes, lambda target: _copy(descriptor, target, size_bytes))
            return FileSegment(stored, 0, size_bytes)
        finally:
            os.close(descriptor)


def _small_bytes(value: _Small) -> int:
    if type(value) is bytes:
        return len(value)
    assert isinstance(value, DataObject)
    return value.size() if type(value) is Plain else total_size(describe(value)[1])


class _CannotLink(Exception):
    pass


def _link(descriptor: int, path: str) -> None:
    try:
        # With a directory descriptor CPython calls linkat, which follows the link; without one, link, which does not.
        # The path is absolute, so which directory it is does not matter.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        raise _CannotLink from None


def _copy(source: int, target: int, size_bytes: int) -> None:
    offset = 0
    while offset < size_bytes:
        sent = os.sendfile(target, source, offset, size_bytes - offset)
        if not sent:
            raise OSError(errno.EIO, "an object that was handed over is shorter than announced")
        offset += sent
