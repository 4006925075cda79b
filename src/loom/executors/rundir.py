"""The directory of one run of a program: what is put there before, what is taken from there after.

The program may leave anything there, links out of it too, and so may others that this user runs. So nothing that is
left is followed or trusted: the directory is the one that was opened when it was made, and everything in it is reached
from there, without passing a link. Outputs are regular files.
"""

import errno
import os
import stat
from contextlib import suppress
from typing import Final, NamedTuple

from loom.data.base import DObject
from loom.data.buffers import FileSegment, StoredFile, write_segments
from loom.data.file import FileObject
from loom.data.plain import Plain
from loom.data.space import has_room, is_full, space_text
from loom.executors.removal import empty_folder
from loom.limits import SMALL_OBJECT_BYTES
from loom.tasktypes.run import STDERR_FILE, STDOUT_FILE

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NEW_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC  # to look at it does nothing to a FIFO or a device
_LEFT_FOLDER: Final = _LEFT | os.O_DIRECTORY

_NO_LINK: Final = frozenset((errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP))


class BadOutput(Exception):
    """A declared output is not there, or is nothing that may be taken."""


class _LinkedInput(NamedTuple):
    position: int
    file: StoredFile
    size: int
    mtime_ns: int


class RunDirectory:
    """A fresh directory `<base_dir>/r<number>`; large outputs become files `<base_dir>/p<number>-<n>`."""

    def __init__(self, base_dir: str, number: int) -> None:
        self.path = os.fsencode(f"{base_dir}/r{number}")
        self._base_dir = base_dir
        self._output_prefix = f"{base_dir}/p{number}-"
        self._outputs = 0
        self._linked: list[_LinkedInput] = []
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:  # some other program has put something there
            self.path += b"-" + os.urandom(8).hex().encode()
            os.mkdir(self.path, 0o700)
        try:
            self.descriptor = os.open(self.path, _NEW_FOLDER)
        except OSError:
            os.rmdir(self.path)
            raise

    def place(self, position: int, name: bytes, value: DObject) -> None:
        """Make an input appear under a name that has been validated; linked where it is one whole file."""
        stored = _whole_file(value)
        folder, last = self._folder_of(name, make=True)
        try:
            if isinstance(value, FileObject):
                os.symlink(value.path, last, dir_fd=folder)
            elif stored is None or not _link(stored, last, folder):
                descriptor = os.open(last, _NEW_FILE, 0o600, dir_fd=folder)
                try:
                    write_segments(descriptor, value.segments())
                finally:
                    os.close(descriptor)
                return
        finally:
            os.close(folder)
        if stored is not None:
            self._watch(position, stored)

    def place_stdin(self, position: int, value: DObject) -> int:
        """Make an input the standard input; returns a descriptor of it."""
        stored = _whole_file(value)
        if stored is not None:
            self._watch(position, stored)  # it can be opened for writing as /dev/stdin
            return stored.open()
        path = self.path + b"+in"  # beside the directory, where every name is the user's
        descriptor = os.open(path, _NEW_FILE, 0o600)
        try:
            os.unlink(path)
            write_segments(descriptor, value.segments())
            return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(descriptor)

    def _watch(self, position: int, stored: StoredFile) -> None:
        """The program has this very file, which stays where it is until the directory is removed."""
        found = os.stat(stored.path)
        stored.users += 1
        self._linked.append(_LinkedInput(position, stored, found.st_size, found.st_mtime_ns))

    def _folder_of(self, name: bytes, make: bool = False) -> tuple[int, bytes]:
        """The folder that a name is in, open and the caller's to close, and the name there. OSError at a link."""
        *folders, last = name.split(b"/")
        at = os.dup(self.descriptor)
        try:
            for folder in folders:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(folder, 0o700, dir_fd=at)
                inner = os.open(folder, _LEFT_FOLDER, dir_fd=at)
                os.close(at)
                at = inner
        except BaseException:
            os.close(at)
            raise
        return at, last

    def changed_inputs(self) -> list[int]:
        """Positions of inputs whose files, given to the program as they are, are not what they were."""
        return [linked.position for linked in self._linked if not _is_unchanged(linked)]

    def take(self, name: bytes) -> Plain:
        """What the program left under this name, moved out where it is large. Raises BadOutput."""
        if self._is_empty(name):
            return Plain(b"")
        fd = self._open_left(name)
        try:
            found = os.fstat(fd)
            if found.st_size <= SMALL_OBJECT_BYTES:
                return Plain(_read_whole(fd, found.st_size))
            self._outputs += 1
            path = f"{self._output_prefix}{self._outputs}"
            stored = StoredFile(path, found.st_size)
            if found.st_nlink == 1 and found.st_uid == os.geteuid():
                self._move(name, found, path)
                os.fchmod(fd, 0o600)
            else:  # known under another name too, or another user's: it could be changed
                _copy(fd, path)
            return Plain(FileSegment(stored, 0, found.st_size))
        finally:
            os.close(fd)

    def _move(self, name: bytes, expected: os.stat_result, path: str) -> None:
        """Out of the directory, unless another file has got its name since it was looked at."""
        folder, last = self._folder_of(name)
        try:
            os.rename(last, path, src_dir_fd=folder)
        finally:
            os.close(folder)
        if not os.path.samestat(os.stat(path, follow_symlinks=False), expected):
            raise BadOutput(f"Output {_shown(name)} was replaced while it was taken")

    def _is_empty(self, name: bytes) -> bool:
        """Whether a look from outside shows an empty regular file, as so many programs leave for their output."""
        if b"/" in name:
            return False
        try:
            found = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:  # opening it gives the reason
            return False
        return stat.S_ISREG(found.st_mode) and not found.st_size

    def tail_of(self, name: bytes, limit_bytes: int) -> str:
        """The end of a file that the program left, as text; empty where there is no such file."""
        try:
            fd = self._open_left(name)
        except BadOutput:
            return ""
        try:
            size = os.fstat(fd).st_size
            return os.pread(fd, limit_bytes, max(0, size - limit_bytes)).decode("utf-8", "replace")
        except OSError:  # no regular file
            return ""
        finally:
            os.close(fd)

    def error_text(self, error: Exception) -> str:
        """The text of an error, and what the file system of the directory has where it is full."""
        is_reason = is_full(error) or not has_room(self._base_dir)
        return f"{error}\n{space_text(self._base_dir)}" if is_reason else str(error)

    def _open_left(self, name: bytes) -> int:
        """Open a regular file that the program left, passing no link on the way. Raises BadOutput."""
        try:
            folder, last = self._folder_of(name)
            try:
                found = os.open(last, _LEFT, dir_fd=folder)
            finally:
                os.close(folder)
            try:
                mode = os.fstat(found).st_mode
                if stat.S_ISLNK(mode):
                    raise BadOutput(f"Output {_shown(name)} cannot be taken, it must be a regular file: it is a link")
                if not stat.S_ISREG(mode):
                    raise BadOutput(f"Output {_shown(name)} is not a regular file")
                return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)  # this very file
            finally:
                os.close(found)
        except FileNotFoundError:
            raise BadOutput(f"The program did not make its output {_shown(name)}") from None
        except OSError as error:
            raise BadOutput(
                f"Output {_shown(name)} cannot be taken, it must be a regular file: {error.strerror}"
            ) from None

    def remove(self) -> None:
        """Remove the directory, whatever is in it (OSError where the system does not let it go)."""
        while self._linked:
            self._linked.pop().file.users -= 1
        try:
            try:  # most programs leave nothing else, and this is cheaper than to look
                os.unlink(STDOUT_FILE, dir_fd=self.descriptor)
                os.unlink(STDERR_FILE, dir_fd=self.descriptor)
                os.rmdir(self.path)
            except OSError:
                os.fchmod(self.descriptor, 0o700)  # the program may have closed it
                empty_folder(self.descriptor)
                os.rmdir(self.path)
        finally:
            os.close(self.descriptor)


def _is_unchanged(linked: _LinkedInput) -> bool:
    try:
        found = os.stat(linked.file.path)
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (linked.size, linked.mtime_ns)


def _whole_file(value: DObject) -> StoredFile | None:
    """The file whose content is exactly that of the object, if there is one."""
    segments = value.segments()
    if len(segments) != 1 or not isinstance(segments[0], FileSegment):
        return None
    segment = segments[0]
    return segment.file if segment.offset == 0 and segment.size == segment.file.size else None


def _shown(name: bytes) -> str:
    return repr(os.fsdecode(name))


def _link(source: StoredFile, name: bytes, folder: int) -> bool:
    """Hard link; False where the file systems do not allow it."""
    try:
        source.link(name, folder)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _read_whole(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


def _copy(fd: int, path: str) -> None:
    target = os.open(path, _NEW_FILE, 0o600)
    try:
        offset = 0
        while copied := os.sendfile(target, fd, offset, 1 << 30):
            offset += copied
    finally:
        os.close(target)
