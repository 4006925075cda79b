"""Array: a sequence of data objects."""

from collections.abc import Sequence

from loom.data.base import MAX_TOLD_SIZE, DataObject
from loom.data.pieces import Pieces


class Array(DataObject):
    """A sequence of any data objects, arrays too."""

    __slots__ = ("_size", "items")
    symbol = "loom/array"

    def __init__(self, items: Sequence[DataObject]) -> None:
        self.items = items
        size = items.size_bytes if isinstance(items, Pieces) else sum(item.size() for item in items)
        self._size = min(size, MAX_TOLD_SIZE)  # own types may say what they like

    def size(self) -> int:
        return self._size

    def length(self) -> int:
        return len(self.items)

    def get(self, i: int) -> DataObject:
        """Element `i`; IndexError where there is none."""
        return self.items[i]

    def slice(self, start: int, end: int) -> "Array":
        """Elements `start` to `end`, cut as Python's slices are."""
        return Array(self.items[start:end])
