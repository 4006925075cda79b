"""Objects in files that outlive the plan: the task `save`, and checkpoints.

A file is written under a temporary name beside its place, forced to disk and renamed, so that under its own name there
is never a part of it. The checkpoint of a D-object holds exactly its bytes. That of any other object is a container:

    8 bytes   MAGIC
    u32       size of the header (little-endian)
    u64       size of the payload
    header    as data.pack makes it
    payload
    u32       CRC-32 of everything before

A D-object whose bytes begin like a container has a file `<name>.plain` beside its checkpoint, with the SHA-256 of its
bytes: what fits that is no container. (All containers end with their own CRC-32, which gives all of them the same one.)
"""

import errno
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from loom.data.base import DataObject, DObject
from loom.data.buffers import FileSegment, Segment, StoredFile, segment_view, total_size, write_segments
from loom.data.pack import describe, rebuild
from loom.data.plain import Plain
from loom.data.space import is_full, room_text
from loom.errors import LoomError
from loom.files import SHOWN_FILE, SHOWN_FOLDER, make_folders
from loom.limits import MAX_PATH_BYTES
from loom.resources import cpu1
from loom.tasktypes import checks
from loom.tasktypes.base import RunContext, TaskError, TaskType
from loom.tasktypes.outputs import store_plain
from loom.tasktypes.paths import check_absolute
from loom.tasktypes.task import Source, Task

SAVE: Final = "loom/data/save"
FIND: Final = "loom/checkpoint/find"  # which of these files are there; no builder of users
LOAD: Final = "loom/checkpoint/load"  # what stands in the place of a task whose checkpoint is there

MAGIC: Final = b"\x93LOOM\x01\r\n"
_PREFIX: Final = struct.Struct("<8sIQ")
_CRC: Final = struct.Struct("<I")
_PLAIN_SUFFIX: Final = b".plain"
_MARK_BYTES: Final = 32  # of SHA-256
_BLOCK_BYTES: Final = 1 << 20

_encode: Final = msgspec.msgpack.Encoder().encode
_PATHS: Final = msgspec.msgpack.Decoder(list[bytes])


def save(input: Source, filename: str | bytes | os.PathLike[str]) -> Task:
    """Write a D-object to a file of the worker's machine, whole or not at all; the result is empty.

    A relative name fails the task: workers have directories of their own.
    """
    try:
        path = os.fsencode(filename)
    except (TypeError, UnicodeEncodeError):
        raise LoomError(f"save: {filename!r:.200} is no file name") from None
    if b"\0" in path or not 0 < len(path) <= MAX_PATH_BYTES:
        raise LoomError(f"save: {filename!r:.200} is no file name")
    return Task(SAVE, (input,), path, cpu1)


def find_task(paths: Sequence[bytes]) -> Task:
    """A task that says with one byte a path whether there is a file (1) or not (0)."""
    return Task(FIND, (), _encode(list(paths)))


def load_task(path: bytes) -> Task:
    """A task whose result is what a checkpoint holds. It has no label: durations by label are those of the work."""
    return Task(LOAD, (), path)


def write_checkpoint(path: bytes, value: DataObject) -> int:
    """Write an object to its checkpoint; returns the size of the file. OSError where that fails, ValueError where the
    path is none that a checkpoint can have.
    """
    check_absolute(path)
    make_folders(os.path.dirname(path), SHOWN_FOLDER)
    if isinstance(value, DObject):
        segments = value.segments()
        if _begins_like_container(segments):
            mark = _digest(segments)
            _write_whole(path + _PLAIN_SUFFIX, lambda descriptor: write_segments(descriptor, [mark]))
        _write_whole(path, lambda descriptor: write_segments(descriptor, segments))
        return total_size(segments)
    header, segments = describe(value)
    prefix = _PREFIX.pack(MAGIC, len(header), total_size(segments)) + header
    parts: list[Segment] = [prefix, *segments, _CRC.pack(_crc(prefix, segments))]
    _write_whole(path, lambda descriptor: write_segments(descriptor, parts))
    return total_size(parts)


def _begins_like_container(segments: Sequence[Segment]) -> bool:
    start = b""
    for segment in segments:
        start += segment_view(segment)[: len(MAGIC) - len(start)]
        if len(start) == len(MAGIC):
            break
    return start == MAGIC


def _is_marked_plain(path: bytes, content: memoryview) -> bool:
    """Whether bytes that look like a container are none: a mark that was left by other bytes does not fit."""
    try:
        mark = _open_regular(path + _PLAIN_SUFFIX)
    except OSError:
        return False
    try:
        return os.read(mark, _MARK_BYTES + 1) == _digest([content])
    except OSError:
        return False
    finally:
        os.close(mark)


def _open_regular(path: bytes) -> int:
    """Open a file that a plan names: a FIFO there would hold up an open that waits. OSError where it is no file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return descriptor


def _digest(segments: Iterable[Segment]) -> bytes:
    import hashlib  # few ever need it

    digest = hashlib.sha256()
    for segment in segments:
        digest.update(segment_view(segment))
    return digest.digest()


def _crc(prefix: bytes, segments: Iterable[Segment]) -> int:
    crc = zlib.crc32(prefix)
    for segment in segments:
        crc = zlib.crc32(segment_view(segment), crc)
    return crc


def _write_whole(path: bytes, write: Callable[[int], None]) -> None:
    """Have a file written, all of it or none."""
    directory, name = os.path.split(path)
    draft = os.path.join(directory, b".%s.%d-%s.part" % (name[:200], os.getpid(), os.urandom(4).hex().encode()))
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SHOWN_FILE)
    try:
        try:
            write(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _run_save(_context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    value = checks.d_object(SAVE, 0, checks.only_input(SAVE, inputs))
    name = os.fsdecode(config)
    try:
        check_absolute(config)
    except ValueError as error:
        raise TaskError(f"{SAVE}: {error}: workers have directories of their own") from None
    try:
        _write_whole(config, lambda descriptor: write_segments(descriptor, value.segments()))
    except OSError as error:
        raise TaskError(f"{SAVE}: {name} cannot be written: {_reason(error, name)}") from None
    return Plain(b"")


def _reason(error: OSError, name: str) -> str:
    """What went wrong; where that is an input's file, which one. Names of files to be written are bytes here."""
    if is_full(error):
        return f"{error.strerror}: {room_text(name)}"
    return f"{error.strerror}: {error.filename}" if isinstance(error.filename, str) else str(error.strerror)


def _run_find(_context: RunContext, config: bytes, _inputs: Sequence[DataObject]) -> DataObject:
    paths = checks.parse_config(FIND, config, _PATHS)
    return Plain(bytes(os.path.isabs(path) and os.path.isfile(path) for path in paths))


def _run_load(context: RunContext, config: bytes, _inputs: Sequence[DataObject]) -> DataObject:
    name = config.decode("utf-8", "backslashreplace")
    try:
        check_absolute(config)
    except ValueError as error:
        raise TaskError(f"{LOAD}: {error}") from None
    try:
        descriptor = _open_regular(config)
    except OSError as error:
        raise TaskError(f"The checkpoint {name} cannot be read: {error.strerror}") from None
    try:
        size = os.fstat(descriptor).st_size
        file = StoredFile(f"/proc/self/fd/{descriptor}", size)  # this one, whatever gets its name meanwhile
        file.keep()
        content = file.map()
        if bytes(content[: len(MAGIC)]) != MAGIC or _is_marked_plain(config, content):
            return store_plain(context, [FileSegment(file, 0, size)] if size else [])
        return _from_container(context, file, content)
    except ValueError as error:
        raise TaskError(f"The checkpoint {name} is damaged ({error}); remove it to have the task run") from None
    except OSError as error:
        raise TaskError(f"The checkpoint {name} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _from_container(context: RunContext, file: StoredFile, content: memoryview) -> DataObject:
    if len(content) < _PREFIX.size + _CRC.size:
        raise ValueError("it is cut short")
    _magic, header_size, payload_size = _PREFIX.unpack_from(content)
    start = _PREFIX.size + header_size
    if len(content) != start + payload_size + _CRC.size:
        raise ValueError(f"it has {len(content)} bytes, not {start + payload_size + _CRC.size}")
    if zlib.crc32(content[: -_CRC.size]) != _CRC.unpack(content[-_CRC.size :])[0]:
        raise ValueError("its checksum is wrong")
    payload = store_plain(context, [FileSegment(file, start, payload_size)] if payload_size else [])
    return rebuild(bytes(content[_PREFIX.size : start]), payload.segments())


TYPES: Final = (
    TaskType(SAVE, "executor", _run_save),
    TaskType(FIND, "inline", _run_find),  # whoever submits waits for it, so it must not wait for a long function
    TaskType(LOAD, "executor", _run_load),
)
