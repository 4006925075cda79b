"""Segments: the stretches of bytes a payload is made of, in memory or in a file of a store directory.

A payload is a list of segments. Everything here cuts, joins and writes them without copying more than it must; it does
not know what the bytes mean.
"""

import errno
import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, Protocol, TypeAlias

from loom.data.fresh import NewBytes
from loom.limits import MAX_OPEN_MAPPINGS

_WRITEV_BUFFERS: Final = 1024  # IOV_MAX of Linux
_NO_COPY_FILE_RANGE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM})


class _Mappings:
    """The mappings of stored files that were used last; a mapping in use survives its eviction from here."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._views: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.RLock()  # re-entrant: a collection inside may run StoredFile.__del__

    def get(self, file: "StoredFile") -> memoryview:
        key = id(file)
        with self._lock:
            view = self._views.get(key)
            if view is None:
                view = _map(file)
                self._views[key] = view
                if len(self._views) > self._limit:
                    self._views.popitem(last=False)
            else:
                self._views.move_to_end(key)
            return view

    def forget(self, file: "StoredFile") -> None:
        with self._lock:
            self._views.pop(id(file), None)


_mappings = _Mappings(MAX_OPEN_MAPPINGS)


class Account(Protocol):
    """Who counts the bytes of a stored file."""

    def gone(self, file: "StoredFile") -> bool:
        """Called once, in any thread, when the last reference goes; True: it removes the file, which must be owned."""


class StoredFile:
    """Payload in a file of a store directory; the file goes with the last reference to this object.

    A file that does not have `size` bytes (any more) raises OSError when it is mapped. Its content may be moved to
    another place at any time, so whoever wants `path` for anything but a name asks `open` or `link`.
    """

    __slots__ = ("__weakref__", "account", "owned", "path", "size", "users")

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.account: Account | None = None
        self.users = 0
        """Programs that have this very file under a name of theirs: while there are any it is not moved."""
        self.owned = True

    def keep(self) -> None:
        """Leave the file where it is when this object goes."""
        self.owned = False

    def open(self) -> int:
        """A new read-only descriptor; the caller closes it. OSError, at once, where something else is in its place."""
        while True:
            path = self.path
            try:
                return _open_regular(path)
            except FileNotFoundError:
                if path == self.path:  # else it has just been moved
                    raise

    def link(self, target: bytes, folder: int) -> None:
        """Give the file another name, in an open folder. OSError where the file systems do not allow it."""
        while True:
            path = self.path
            try:
                os.link(path, target, dst_dir_fd=folder, follow_symlinks=False)
                return
            except FileNotFoundError:
                if path == self.path:
                    raise

    def move_to(self, path: str) -> str:
        """The same bytes are in another file now; returns the path of the old one, which is the caller's to remove."""
        old, self.path = self.path, path
        _mappings.forget(self)
        return old

    def map(self) -> memoryview:
        """The whole file, read-only."""
        return _mappings.get(self) if self.size else memoryview(b"")

    def __del__(self) -> None:
        try:
            _mappings.forget(self)
            removed = self.account is not None and self.account.gone(self)
            if self.owned and not removed:
                os.unlink(self.path)
        except (OSError, TypeError, AttributeError):
            pass  # gone already, or the interpreter is: its modules are torn down


class FileSegment:
    """`size` bytes of a stored file from `offset` on."""

    __slots__ = ("file", "offset", "size")

    def __init__(self, file: StoredFile, offset: int, size: int) -> None:
        self.file = file
        self.offset = offset
        self.size = size


Segment: TypeAlias = bytes | memoryview | FileSegment


def segment_size(segment: Segment) -> int:
    return segment.size if isinstance(segment, FileSegment) else len(segment)


def segment_view(segment: Segment) -> memoryview:
    """The bytes of a segment, not copied."""
    if isinstance(segment, FileSegment):
        return segment.file.map()[segment.offset : segment.offset + segment.size]
    return memoryview(segment)


def cut_segment(segment: Segment, start: int, end: int) -> Segment:
    """Bytes `start` to `end` of a segment, not copied."""
    if start == 0 and end == segment_size(segment):
        return segment
    if isinstance(segment, FileSegment):
        return FileSegment(segment.file, segment.offset + start, end - start)
    return memoryview(segment)[start:end]


def total_size(segments: Iterable[Segment]) -> int:
    return sum(map(segment_size, segments))


def join(segments: Sequence[Segment]) -> bytes:
    """All bytes in one value; a single bytes segment is returned as it is."""
    if len(segments) == 1 and isinstance(segments[0], bytes):
        return segments[0]
    return b"".join(map(segment_view, segments))


def join_large(segments: Sequence[Segment]) -> bytes:
    """As `join`, and faster from LARGE_VALUE_BYTES on; for few bytes it is slower."""
    if len(segments) == 1 and isinstance(segments[0], bytes):
        return segments[0]
    joined = NewBytes(total_size(segments))
    for segment in segments:
        joined.append(segment_view(segment))
    return joined.value()


def joined_view(segments: Sequence[Segment]) -> memoryview:
    """All bytes as one stretch of memory; copied only where there are several segments."""
    return segment_view(segments[0]) if len(segments) == 1 else memoryview(join(segments))


class Cursor:
    """Takes a payload from the front of segment `first` on, piece by piece."""

    __slots__ = ("_next", "_offset", "_segments")

    def __init__(self, segments: Sequence[Segment], first: int = 0) -> None:
        self._segments = segments
        self._next = first
        self._offset = 0

    def take(self, n: int) -> list[Segment]:
        """The next `n` bytes, cut without copying; ValueError where fewer are left."""
        taken: list[Segment] = []
        while n > 0:
            if self._next == len(self._segments):
                raise ValueError(f"the payload ends {n} bytes too early")
            segment = self._segments[self._next]
            start = self._offset
            end = min(start + n, segment_size(segment))
            if end > start:
                taken.append(cut_segment(segment, start, end))
                n -= end - start
            if end == segment_size(segment):
                self._next += 1
                self._offset = 0
            else:
                self._offset = end
        return taken

    def remaining(self) -> int:
        """How many bytes have not been taken."""
        return total_size(islice(self._segments, self._next, None)) - self._offset


def write_segments(fd: int, segments: Iterable[Segment]) -> None:
    """Append the payload at the descriptor's position, whole; file segments are copied inside the kernel where it can.

    OSError passes through, whatever was written before stays.
    """
    in_memory: list[memoryview] = []
    for segment in segments:
        if isinstance(segment, FileSegment):
            _write_views(fd, in_memory)
            in_memory = []
            _copy_file_segment(fd, segment)
        else:
            in_memory.append(memoryview(segment))
    _write_views(fd, in_memory)


def _write_views(fd: int, views: list[memoryview]) -> None:
    """Write the views; the list is used up on the way."""
    start = 0
    while start < len(views):
        written = os.writev(fd, views[start : start + _WRITEV_BUFFERS])
        while start < len(views) and written >= len(views[start]):
            written -= len(views[start])
            start += 1
        if written:
            views[start] = views[start][written:]


def _copy_file_segment(fd: int, segment: FileSegment) -> None:
    source = segment.file.open()
    try:
        offset, left = segment.offset, segment.size
        while left:
            try:
                copied = os.copy_file_range(source, fd, left, offset)
            except OSError as error:
                if error.errno not in _NO_COPY_FILE_RANGE:
                    raise
                copied = -1
            if copied < 0:  # not up there: another error would keep this one, and this one the view
                _write_views(fd, [segment.file.map()[offset : offset + left]])
                return
            if copied == 0:
                raise OSError(errno.EIO, "file is shorter than it was", segment.file.path)
            offset += copied
            left -= copied
    finally:
        os.close(source)


def _open_regular(path: str) -> int:
    """Files that users name may be replaced: by a FIFO, which would hold up an open that waits, or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def _map(file: StoredFile) -> memoryview:
    descriptor = file.open()
    try:
        return memoryview(mmap.mmap(descriptor, file.size, prot=mmap.PROT_READ))
    except ValueError:  # what mmap says of a file that is too short
        raise OSError(errno.EIO, "file is shorter than it was", file.path) from None
    finally:
        os.close(descriptor)
