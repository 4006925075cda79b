"""Pieces: plain objects that lie one after the other in one payload, cut out only when asked for."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, overload

from loom.data.buffers import Cursor, Segment, cut_segment, join, joined_view, segment_size, total_size
from loom.data.plain import Plain
from loom.limits import SMALL_OBJECT_BYTES

POSITION_BYTES: Final = 8


class Pieces(Sequence[Plain]):
    """The pieces of `segments` that end at `ends` (a column of u64, rising); the first begins at 0.

    The column is checked against the payload when a piece is taken, not before: making this is O(1). ValueError where
    it does not fit.
    """

    __slots__ = ("_positions", "_segment_ends", "ends", "segments", "size_bytes")

    def __init__(self, segments: list[Segment], ends: bytes | memoryview) -> None:
        if len(ends) % POSITION_BYTES:
            raise ValueError(f"a column of positions has {len(ends)} bytes")
        self.segments = segments
        self.ends = ends
        self.size_bytes = total_size(segments)
        self._segment_ends: list[int] | None = None  # found when the first piece is cut from several segments
        self._positions = memoryview(ends).cast("Q")
        if self._end(len(self)) != self.size_bytes:
            raise ValueError("the positions do not cover the payload")

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Plain: ...

    @overload
    def __getitem__(self, index: slice) -> "list[Plain]": ...

    def __getitem__(self, index: int | slice) -> "Plain | list[Plain]":
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        return self.stretch(at, at + 1)

    def __iter__(self) -> Iterator[Plain]:
        return (self.stretch(i, i + 1) for i in range(len(self)))

    def stretch(self, start: int, end: int) -> Plain:
        """The bytes of pieces `start` to `end` in a row (0 <= start <= end <= len).

        A small stretch is copied, so that it does not keep a large payload alive; a large one shares the payload.
        """
        first, last = self._end(start), self._end(end)
        if not first <= last <= self.size_bytes:
            raise ValueError(f"positions {first} and {last} do not fit into a payload of {self.size_bytes} bytes")
        parts = self._cut(first, last)
        return Plain(parts if last - first > SMALL_OBJECT_BYTES else join(parts))

    def contents(self) -> list[bytes]:
        """Every piece as bytes; much faster than taking them one by one."""
        content = joined_view(self.segments)
        values: list[bytes] = []
        start = 0
        for end in self._positions.tolist():
            if not start <= end <= self.size_bytes:
                raise ValueError(f"position {end} comes after {start} in a payload of {self.size_bytes} bytes")
            values.append(bytes(content[start:end]))
            start = end
        return values

    def _end(self, count: int) -> int:
        """Where the first `count` pieces end."""
        return self._positions[count - 1] if count else 0

    def _cut(self, first: int, last: int) -> list[Segment]:
        if len(self.segments) == 1:
            return [cut_segment(self.segments[0], first, last)]
        if self._segment_ends is None:
            self._segment_ends = list(accumulate(map(segment_size, self.segments)))
        at = bisect_right(self._segment_ends, first)
        skipped = self._segment_ends[at - 1] if at else 0
        cursor = Cursor(self.segments, at)
        cursor.take(first - skipped)
        return cursor.take(last - first)


def column_of(positions: Sequence[int]) -> bytes:
    """A u64 column of positions."""
    return array("Q", positions).tobytes()
