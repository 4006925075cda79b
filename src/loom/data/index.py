"""Index: a view of a D-object by positions; it behaves like an array without storing each entry."""

from loom.data.base import DataObject, DObject
from loom.data.pieces import POSITION_BYTES, Pieces
from loom.data.plain import Plain


class Index(DataObject):
    """The pieces of `data`, one after the other from its first byte to its last.

    `positions`: a u64 column of where each piece ends. ValueError where they do not cover the data.
    """

    __slots__ = ("data", "pieces")
    symbol = "loom/index"

    def __init__(self, data: DObject, positions: bytes | memoryview) -> None:
        self.data = data
        self.pieces = Pieces(data.segments(), positions)

    @property
    def positions(self) -> bytes | memoryview:
        return self.pieces.ends

    def size(self) -> int:
        return self.data.size() + POSITION_BYTES * len(self.pieces)

    def length(self) -> int:
        return len(self.pieces)

    def get(self, i: int) -> Plain:
        """Piece `i`; IndexError where there is none."""
        return self.pieces[i]

    def slice(self, start: int, end: int) -> Plain:
        """The bytes of pieces `start` to `end` in a row, bounds cut as Python's slices are."""
        start, end, _ = slice(start, end).indices(len(self.pieces))
        return self.pieces.stretch(start, max(start, end))
