"""Inputs of tasks as an executor has them: sent along, handed over as descriptors, or kept from an earlier task."""

import os
from collections import OrderedDict
from collections.abc import Sequence

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, StoredFile, join
from loom.data.pack import from_packed, rebuild
from loom.limits import KEPT_FUNCTIONS, KEPT_FUNCTIONS_BYTES, RECENT_RESULT_BYTES, RECENT_RESULTS
from loom.messages import ExecutorInput, ExecutorTask, SmallResult


class HandedFile(StoredFile):
    """A file that came as a descriptor: it is closed, and nothing is unlinked, when the last reference goes."""

    def __init__(self, fd: int) -> None:
        super().__init__(f"/proc/self/fd/{fd}", os.fstat(fd).st_size)
        self.keep()
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)
        super().__del__()


class KeptObjects:
    """Objects that tasks have in common (functions); those not used for longest go first."""

    def __init__(self) -> None:
        self._objects: OrderedDict[int, tuple[DataObject, int]] = OrderedDict()
        self._bytes = 0

    def get(self, object_id: int) -> DataObject | None:
        """The object, or None where it was never kept or has been forgotten."""
        found = self._objects.get(object_id)
        if found is None:
            return None
        self._objects.move_to_end(object_id)
        return found[0]

    def add(self, object_id: int, value: DataObject, size_bytes: int) -> None:
        """Keep an object; the newest one stays, however large."""
        if object_id in self._objects:
            return
        self._objects[object_id] = value, size_bytes
        self._bytes += size_bytes
        while len(self._objects) > KEPT_FUNCTIONS or (self._bytes > KEPT_FUNCTIONS_BYTES and len(self._objects) > 1):
            _id, (_value, freed_bytes) = self._objects.popitem(last=False)
            self._bytes -= freed_bytes


class RecentResults:
    """Small results of the last tasks by their serials, for tasks that follow them."""

    def __init__(self) -> None:
        self._results: list[SmallResult | None] = [None] * RECENT_RESULTS

    def add(self, result: SmallResult) -> None:
        if len(result.packed) <= RECENT_RESULT_BYTES:
            self._results[result.serial % RECENT_RESULTS] = result

    def get(self, serial: int) -> DataObject | None:
        result = self._results[serial % RECENT_RESULTS]
        return from_packed(result.packed) if result is not None and result.serial == serial else None


class MissingInputs(Exception):
    """Inputs that were to be kept here (`objects`), or made here, and are not."""

    def __init__(self, objects: list[int]) -> None:
        super().__init__(objects)
        self.objects = objects


def build_inputs(
    task: ExecutorTask, files: Sequence[HandedFile], kept: KeptObjects, recent: RecentResults
) -> list[DataObject]:
    """The task's inputs in order; `files` are the descriptors of its message. Raises MissingInputs."""
    objects: list[DataObject] = []
    missing: list[int] = []
    for given in task.inputs:
        if isinstance(given, bytes):
            objects.append(from_packed(given))
        elif isinstance(given, int):
            found = kept.get(given) if given > 0 else recent.get(-given)
            if found is not None:
                objects.append(found)
            elif given > 0:
                missing.append(given)
        else:
            objects.append(_unpack_given(given, files, kept))
    if len(objects) < len(task.inputs):
        raise MissingInputs(missing)
    return objects


def _unpack_given(given: ExecutorInput, files: Sequence[HandedFile], kept: KeptObjects) -> DataObject:
    if given.packed is not None:
        value = from_packed(given.packed)
        size_bytes = len(given.packed)
    else:
        value = _rebuild_handed(given, files)
        size_bytes = sum(size for _index, _offset, size in given.parts)
    if given.keep:
        kept.add(given.object, value, size_bytes)
    return value


def _rebuild_handed(given: ExecutorInput, files: Sequence[HandedFile]) -> DataObject:
    if any(index >= len(files) for index, _offset, _size in given.parts):
        raise OSError("an input could not be opened: this process has too many open files")
    segments = [FileSegment(files[index], offset, size) for index, offset, size in given.parts]
    if given.keep:  # it outlives its message, its descriptors must not
        return rebuild(given.header, [join(segments)])
    return rebuild(given.header, segments)
