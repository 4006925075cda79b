"""Large results go to a file of the store directory as they are made."""

import os
from collections.abc import Sequence

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, Segment, StoredFile, join, total_size, write_segments
from loom.data.pack import describe, rebuild
from loom.data.plain import Plain
from loom.limits import SMALL_OBJECT_BYTES
from loom.tasktypes.base import RunContext


def store_plain(context: RunContext, segments: Sequence[Segment]) -> Plain:
    """A plain object with copies of these bytes, in a file if they are many. OSError where there is no room."""
    return Plain(_store(context, segments))


def store_object(context: RunContext, obj: DataObject) -> DataObject:
    """The object with copies of its bytes, in a file if they are many. OSError where there is no room."""
    header, segments = describe(obj)
    if total_size(segments) <= SMALL_OBJECT_BYTES:
        return obj
    return rebuild(header, [_store(context, segments)])


def _store(context: RunContext, segments: Sequence[Segment]) -> Segment:
    size = total_size(segments)
    if size <= SMALL_OBJECT_BYTES or context.new_output is None:
        return join(segments)
    stored = StoredFile(context.new_output(size), size)
    descriptor = os.open(stored.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write_segments(descriptor, segments)
    finally:
        os.close(descriptor)
    return FileSegment(stored, 0, size)
