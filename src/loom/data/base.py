"""What every data object can tell of itself, and what those with plain bytes can give."""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

from loom.data.buffers import Segment, join, join_large, joined_view
from loom.data.fresh import LARGE_VALUE_BYTES

MAX_TOLD_SIZE: Final = 1 << 48  # what size() and length() may say: sums over many objects stay numbers of 64 bits


class DataObject(ABC):
    """An immutable value: the result of one task, an input of others."""

    __slots__ = ()
    symbol: str
    is_d_object: ClassVar[bool] = False

    @abstractmethod
    def size(self) -> int:
        """Bytes needed to store it, as users are told (an approximation)."""

    def length(self) -> int:
        """How many inner pieces; 0 for what has no inner structure."""
        return 0


class DObject(DataObject):
    """A data object whose content is one sequence of bytes."""

    __slots__ = ()
    is_d_object = True

    @abstractmethod
    def segments(self) -> list[Segment]:
        """The content in order, not copied."""

    def read(self) -> bytes:
        return join(self.segments()) if self.size() < LARGE_VALUE_BYTES else join_large(self.segments())

    def view(self) -> memoryview:
        """The content as one stretch of memory; copied only where it consists of several segments."""
        return joined_view(self.segments())
