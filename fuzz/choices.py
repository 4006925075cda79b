"""An input read as a row of decisions: whatever bytes come, something can be made of them."""

from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

EDGES: Final = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    1023,
    65535,
    65536,
    1 << 31,
    (1 << 32) - 1,
    1 << 39,
    (1 << 40) - 1,
    1 << 40,
)
WIDE_EDGES: Final = (*EDGES, 1 << 48, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


class Choices:
    """When the input is used up every decision is for the first (or smallest) of what there is."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not looked at yet."""
        return len(self._data) - self._at

    def byte(self) -> int:
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, count: int) -> int:
        """A number from 0 to count - 1; `count` is at most 65,536."""
        if count <= 1:
            return 0
        number = self.byte() if count <= 256 else self.byte() << 8 | self.byte()
        return number % count

    def one_in(self, count: int) -> bool:
        """Rarely true, and never where the input is used up."""
        return self.below(count) == count - 1

    def of(self, several: Sequence[T]) -> T:
        return several[self.below(len(several))]

    def number(self) -> int:
        """Of up to 64 bits, where things often go wrong."""
        how = self.byte()
        if how < 128:
            return how & 7
        if how < 224:
            return self.of(WIDE_EDGES)
        return int.from_bytes(self.take(8), "little")

    def take(self, count: int) -> bytes:
        """The next `count` bytes as they are, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        return self.take(self.left)
