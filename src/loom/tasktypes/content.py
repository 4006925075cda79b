"""Tasks on bytes: const, merge, open, split."""

import os
import stat
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from loom.data.base import DataObject
from loom.data.buffers import Segment
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.plain import Plain
from loom.errors import LoomError
from loom.limits import MAX_PATH_BYTES, SMALL_OBJECT_BYTES
from loom.tasktypes import checks
from loom.tasktypes.base import RunContext, TaskError, TaskType
from loom.tasktypes.outputs import store_plain
from loom.tasktypes.task import Source, Task

CONST: Final = "loom/data/const"
MERGE: Final = "loom/data/merge"
OPEN: Final = "loom/data/open"
SPLIT: Final = "loom/data/split"

_SPLIT_BLOCK_BYTES: Final = 1 << 20  # bounds the copies that splitting makes; larger blocks are not faster


def const(data: bytes | str) -> Task:
    """A plain object with these bytes; a str is taken as UTF-8."""
    return Task(CONST, (), checks.as_bytes("const", data))


def merge(inputs: Iterable[Source], delimiter: bytes | str = b"") -> Task:
    """One plain object of the inputs' bytes in a row, with the delimiter between them; of no inputs it is empty."""
    return Task(MERGE, checks.series("merge", inputs), checks.as_bytes("merge", delimiter))


def open(filename: str | bytes | os.PathLike[str]) -> Task:
    """A file that every worker sees; only its path travels. A relative name is taken from the current directory.

    A file that is missing when the task runs fails it.
    """
    try:
        path = os.fsencode(os.path.abspath(filename)) if os.fspath(filename) else b""
    except (TypeError, UnicodeEncodeError):
        path = b""
    if b"\0" in path or not 0 < len(path) <= MAX_PATH_BYTES:
        raise LoomError(f"open: {filename!a:.200} is no file name")
    return Task(OPEN, (), path)


def split(input: Source, char: bytes | str | None = None) -> Task:
    """The pieces of a D-object that end with a delimiter, a newline unless given, as an index over it.

    Each piece keeps its delimiter, of one or more bytes; a last piece without one counts.
    """
    delimiter = b"\n" if char is None else checks.as_bytes("split", char)
    if not delimiter:
        raise LoomError("split: the delimiter is empty")
    return Task(SPLIT, (input,), delimiter)


def _run_const(context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    if inputs:
        raise TaskError(f"{CONST}: takes no inputs, not {len(inputs)}")
    return Plain(config) if len(config) <= SMALL_OBJECT_BYTES else store_plain(context, [config])


def _run_merge(context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    if len(inputs) == 1 and isinstance(inputs[0], Plain):
        return inputs[0]
    segments: list[Segment] = []
    for position, value in enumerate(inputs):
        if config and position:
            segments.append(config)
        segments += checks.d_object(MERGE, position, value).segments()
    return store_plain(context, segments)


def _run_open(_context: RunContext, config: bytes, _inputs: Sequence[DataObject]) -> DataObject:
    name = config.decode("utf-8", "backslashreplace")
    if not os.path.isabs(config) or b"\0" in config:
        raise TaskError(f"{OPEN}: {name!r:.200} is no absolute path")
    try:
        status = os.stat(config)
    except OSError as error:
        raise TaskError(f"{OPEN}: {name}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise TaskError(f"{OPEN}: {name}: not a regular file")
    return FileObject(config, status.st_size)


def _run_split(_context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    data = checks.d_object(SPLIT, 0, checks.only_input(SPLIT, inputs))
    if not config:
        raise TaskError(f"{SPLIT}: the delimiter is empty")
    return Index(data, _piece_ends(data.view(), config))


def _piece_ends(content: memoryview, delimiter: bytes) -> bytes:
    """Where each piece ends, as a u64 column; some 70 ns a piece."""
    ends = array("Q")
    start = 0
    block_bytes = _SPLIT_BLOCK_BYTES
    while start < len(content):
        stop = start + block_bytes
        *whole, rest = bytes(content[start:stop]).split(delimiter)
        for piece in whole:
            start += len(piece) + len(delimiter)
            ends.append(start)
        if stop >= len(content):
            if rest:
                ends.append(len(content))
            break
        block_bytes = _SPLIT_BLOCK_BYTES if whole else 2 * block_bytes
    return ends.tobytes()


TYPES: Final = (
    TaskType(CONST, "inline", _run_const),
    TaskType(MERGE, "inline", _run_merge),
    TaskType(OPEN, "inline", _run_open),
    TaskType(SPLIT, "inline", _run_split),
)
