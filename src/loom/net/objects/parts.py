"""A payload as descriptors of the files that hold it."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from loom.data.buffers import FileSegment, Segment, StoredFile, segment_size, write_segments
from loom.limits import MAX_HANDOVER_FDS


class Parts(NamedTuple):
    """Part i is (offset, length) = `places[i]` of the read-only `descriptors[i]`.

    The same descriptor may occur several times; it is to be closed once.
    """

    descriptors: list[int]
    places: list[tuple[int, int]]


def open_parts(segments: Sequence[Segment]) -> Parts | None:
    """None where the payload has more parts than one message can hand over, or a file cannot be opened.

    What lies in memory is copied to a file in memory; the rest is not copied.
    """
    in_memory: list[Segment] = []
    sources: list[StoredFile | None] = []  # None: the file in memory
    places: list[tuple[int, int]] = []
    memory_bytes = 0
    for segment in segments:
        size = segment_size(segment)
        if isinstance(segment, FileSegment):
            source, offset = segment.file, segment.offset
        else:
            source, offset = None, memory_bytes
            in_memory.append(segment)
            memory_bytes += size
        if places and sources[-1] is source and sum(places[-1]) == offset:
            places[-1] = (places[-1][0], places[-1][1] + size)
        elif size:
            sources.append(source)
            places.append((offset, size))
    if len(places) > MAX_HANDOVER_FDS:
        return None
    opened: dict[StoredFile | None, int] = {}
    try:
        for source in sources:
            if source not in opened:
                opened[source] = source.open() if source is not None else _file_in_memory(in_memory)
    except OSError:
        for descriptor in opened.values():
            os.close(descriptor)
        return None
    return Parts([opened[source] for source in sources], places)


def _file_in_memory(segments: Sequence[Segment]) -> int:
    writable = os.memfd_create("loom-handover")
    try:
        write_segments(writable, segments)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)
