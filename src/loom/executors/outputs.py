"""Results of tasks as an executor gives them back: small ones whole, large ones as parts of a file or of inputs."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from loom.data.base import DataObject
from loom.data.buffers import FileSegment, Segment, total_size, write_segments
from loom.data.pack import describe, to_packed
from loom.data.plain import Plain
from loom.data.space import SPACE_TEXT, free_bytes, full_error, has_room, is_full, space_text
from loom.executors.inputs import HandedFile
from loom.limits import SMALL_OBJECT_BYTES
from loom.messages import ExecutorInput, LargeResult, ResultPart, SmallResult
from loom.tasktypes.base import TaskError


class OutputFiles:
    """The files that the running task writes in the store directory: `<prefix><number>`, counted from 1.

    They are `<spare_prefix><number>` on disk instead, if there is such a place, where the store directory, in memory,
    has no room for one, and while `crowded` says that the store is to take no more of it.
    """

    def __init__(self, prefix: str, spare_prefix: str = "", crowded: Callable[[], bool] = lambda: False) -> None:
        self._prefix = prefix
        self._spare_prefix = spare_prefix
        self._crowded = crowded
        self._count = 0
        self._paths: list[str] = []  # the first is where the result goes

    def new_output(self, size_bytes: int = 0) -> str:
        """Make an empty file for so many bytes; the first one of a task is where its result goes."""
        use_spare = self._spare_prefix and (
            self._crowded() or free_bytes(os.path.dirname(self._prefix)) < max(size_bytes, SMALL_OBJECT_BYTES)
        )
        path = self._make(self._spare_prefix if use_spare else self._prefix)
        self._paths.append(path)
        return path

    def _make(self, prefix: str) -> str:
        self._count += 1
        path = f"{prefix}{self._count}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        return path

    def main(self, size_bytes: int = 0) -> str:
        """The task's first file, made if need be."""
        return self._paths[0] if self._paths else self.new_output(size_bytes)

    def is_main(self, path: str) -> bool:
        return bool(self._paths) and self._paths[0] == path

    def start_again(self) -> bool:
        """Have the result go to a new file in the other place; False where there is none."""
        if not self._spare_prefix:
            return False
        in_spare = bool(self._paths) and self._paths[0].startswith(self._spare_prefix)
        self._paths.insert(0, self._make(self._prefix if in_spare else self._spare_prefix))
        return True

    @property
    def places(self) -> list[str]:
        return [os.path.dirname(prefix) for prefix in (self._prefix, self._spare_prefix) if prefix]

    def with_space(self, error: BaseException, text: str) -> str:
        """The text of an error, and what the file systems have if that was the reason."""
        full = full_error(error)
        if full is None or SPACE_TEXT in text:
            return text
        if isinstance(full.filename, str):
            places = [full.filename]
        else:  # written to what was open already
            places = [place for place in self.places if not has_room(place)]
        return f"{text.rstrip()}\n{space_text(*places)}" if places else text

    def close(self, kept: str = "") -> None:
        """The task is over: remove its files but the one that its result names."""
        if self._paths:
            for path in self._paths:
                if path != kept:
                    with suppress(FileNotFoundError):  # the object that wrote it has gone, and the file with it
                        os.unlink(path)
            self._paths.clear()


def make_result(
    serial: int,
    value: DataObject,
    inputs: Sequence[bytes | int | ExecutorInput],
    files: Sequence[HandedFile],
    outputs: OutputFiles,
) -> SmallResult | LargeResult:
    """The object as it goes back; its times are still to be filled in. OSError where there is no room for it."""
    size_bytes = value.size()
    length = value.length()
    if type(value) is not Plain or size_bytes > SMALL_OBJECT_BYTES:
        header, segments = describe(value)
        if total_size(segments) > SMALL_OBJECT_BYTES:
            parts = _place_somewhere(segments, inputs, files, outputs)
            file = outputs.main() if any(part.input < 0 for part in parts) else ""
            return LargeResult(serial, 0, 0, size_bytes, length, header, file, parts)
    return SmallResult(serial, 0, 0, size_bytes, length, to_packed(value))


def _place_somewhere(
    segments: Sequence[Segment],
    inputs: Sequence[bytes | int | ExecutorInput],
    files: Sequence[HandedFile],
    outputs: OutputFiles,
) -> list[ResultPart]:
    """Place the segments where there is room for them; TaskError where there is none."""
    try:
        try:
            return _place_segments(segments, inputs, files, outputs)
        except OSError as error:
            if not is_full(error) or not outputs.start_again():
                raise
        return _place_segments(segments, inputs, files, outputs)
    except OSError as error:
        if not is_full(error):
            raise
        raise TaskError(f"the result could not be stored: {space_text(*outputs.places)}") from None


def _place_segments(
    segments: Sequence[Segment],
    inputs: Sequence[bytes | int | ExecutorInput],
    files: Sequence[HandedFile],
    outputs: OutputFiles,
) -> list[ResultPart]:
    """Say where each segment is, after copying to the output file what is in no file that the worker knows."""
    parts: list[ResultPart] = []
    copied: list[Segment] = []
    for segment in segments:
        part = None
        # A part of an input keeps all of that input's file alive, so few bytes are rather copied.
        if type(segment) is FileSegment and segment.size > SMALL_OBJECT_BYTES:
            part = _part_of_input(segment, inputs, files) or _part_of_output(segment, outputs)
        if part is None:
            copied.append(segment)
        else:
            _copy_out(copied, outputs, parts)
            parts.append(part)
    _copy_out(copied, outputs, parts)
    return parts


def _part_of_input(
    segment: FileSegment, inputs: Sequence[bytes | int | ExecutorInput], files: Sequence[HandedFile]
) -> ResultPart | None:
    if not isinstance(segment.file, HandedFile):
        return None
    end = segment.offset + segment.size
    for number, given in enumerate(inputs):
        if not isinstance(given, ExecutorInput):
            continue
        for place, (index, offset, size) in enumerate(given.parts):
            if files[index] is segment.file and offset <= segment.offset and end <= offset + size:
                return ResultPart(number, place, segment.offset - offset, segment.size)
    return None


def _part_of_output(segment: FileSegment, outputs: OutputFiles) -> ResultPart | None:
    if not outputs.is_main(segment.file.path):
        return None
    segment.file.keep()
    return ResultPart(-1, 0, segment.offset, segment.size)


def _copy_out(segments: list[Segment], outputs: OutputFiles, parts: list[ResultPart]) -> None:
    """Append the segments to the output file as one part, and clear the list."""
    if not segments:
        return
    size = total_size(segments)
    fd = os.open(outputs.main(size), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        offset = os.lseek(fd, 0, os.SEEK_END)
        write_segments(fd, segments)
    finally:
        os.close(fd)
    parts.append(ResultPart(-1, 0, offset, size))
    segments.clear()
