"""Plain object: bytes without further meaning."""

from loom.data.base import DObject
from loom.data.buffers import Segment, segment_size, total_size


class Plain(DObject):
    """An anonymous sequence of bytes."""

    __slots__ = ("_segments", "_size")
    symbol = "loom/data"

    def __init__(self, content: Segment | list[Segment]) -> None:
        if type(content) is bytes:
            self._segments: list[Segment] = [content]
            self._size = len(content)
        elif isinstance(content, list):
            self._segments = content
            self._size = total_size(content)
        else:
            self._segments = [content]
            self._size = segment_size(content)

    def size(self) -> int:
        return self._size

    def segments(self) -> list[Segment]:
        return self._segments
