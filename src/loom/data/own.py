"""Own data: objects of types that plugins define. Loom carries them unopened, by symbol, size, length and payload.

A process that wants the value inside, or an element, has to know the type: it registers the class first. What a class
does or says harms nobody but its caller: whatever it raises or returns wrongly becomes a LoomError that names the type.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from loom.data.base import MAX_TOLD_SIZE, DataObject
from loom.data.buffers import Cursor, Segment, joined_view, total_size
from loom.errors import LoomError

_T = TypeVar("_T")

_classes: dict[str, type] = {}
_symbols: dict[type, str] = {}


def register_own_type(symbol: str, cls: type) -> None:
    """Make a class known in this process, in the place of what the symbol meant before.

    It has `pack()` and a class method `unpack(packed)`, and may have `size()`, `length()`, `get(i)`, `slice(i, j)`.
    """
    old = _classes.get(symbol)
    if old is not None:
        _symbols.pop(old, None)
    _classes[symbol] = cls
    _symbols[cls] = symbol


class OwnObject(DataObject):
    """A packed object of an own type.

    `parts` are the sizes of what `pack` gave where that was a list, None where it was one stretch of bytes. `size` and
    `length` are what the type said of the object, which need not have to do with the payload. ValueError where the
    parts do not cover the payload.
    """

    __slots__ = ("_length", "_live", "_size", "parts", "segments", "symbol")

    def __init__(
        self, symbol: str, size: int, length: int, segments: list[Segment], parts: Sequence[int] | None
    ) -> None:
        if parts is not None and sum(parts) != total_size(segments):
            raise ValueError(f"the parts of an object of type {symbol} do not cover its payload")
        self.symbol = symbol
        self.segments = segments
        self.parts = parts
        self._size = size
        self._length = length
        self._live: Any = None  # for get and slice, which may be many

    def size(self) -> int:
        return self._size

    def length(self) -> int:
        return self._length

    def has_elements(self) -> bool:
        """Whether the type is known here and has `get`."""
        return hasattr(_classes.get(self.symbol), "get")

    def load(self) -> Any:
        """A new instance of the type. LoomError where the type is not known here, or cannot make one."""
        cls = _classes.get(self.symbol)
        if cls is None:
            raise LoomError(
                f"the type {self.symbol} is not known in this process: start the worker with --load MODULE, in a client"
                " call loom.plugins.load('MODULE') or import the module that defines the type"
            )
        unpack: Callable[[object], object] = cls.unpack  # type: ignore[attr-defined]
        value = _ask(self.symbol, "unpack", unpack, self._packed())
        if not isinstance(value, cls):
            raise LoomError(f"{self.symbol}: unpack() returned {type(value).__name__}, no {cls.__name__}")
        return value

    def _packed(self) -> memoryview | list[memoryview]:
        """What `pack` gave, read-only, and copied only where a part came here in several segments."""
        if self.parts is None:
            return joined_view(self.segments).toreadonly()
        cursor = Cursor(self.segments)
        return [joined_view(cursor.take(size)).toreadonly() for size in self.parts]

    def get(self, i: int) -> Any:
        """What the type gives as element `i`. LoomError as for `load`."""
        live = self._value()
        if not self.has_elements():
            raise LoomError(f"{self.symbol} has no elements: its type has no get()")
        return _ask(self.symbol, "get", live.get, i)

    def slice(self, start: int, end: int) -> Any:
        """What the type gives as elements `start` to `end` (bounds that fit): a list of elements where it has no own
        way to do it. LoomError as for `load`.
        """
        live = self._value()
        if not hasattr(live, "slice"):
            return [self.get(i) for i in range(start, end)]
        return _ask(self.symbol, "slice", live.slice, start, end)

    def _value(self) -> Any:
        if self._live is None:
            self._live = self.load()
        return self._live


def pack_own(value: object) -> OwnObject | None:
    """The value as an own object; None where it is no instance of a registered type.

    LoomError that names the type where its methods raise or return nonsense. The bytes are shared with the value.
    """
    symbol = _symbols.get(type(value))
    if symbol is None:
        return None
    own: Any = value
    packed = _ask(symbol, "pack", own.pack)
    if isinstance(packed, list | tuple):
        segments = [_segment(symbol, part) for part in packed]
        parts = list(map(len, segments))
    else:
        segments, parts = [_segment(symbol, packed)], None
    length = _count(symbol, "length", own.length) if hasattr(own, "length") else 0
    size = _count(symbol, "size", own.size) if hasattr(own, "size") else sum(map(len, segments))
    return OwnObject(symbol, size, length, list(segments), parts)


def _segment(symbol: str, given: object) -> bytes | memoryview:
    if isinstance(given, bytes):
        return given
    try:
        view = memoryview(given)  # type: ignore[arg-type]
    except TypeError:
        raise LoomError(
            f"{symbol}: pack() has to return something bytes-like or a list of such, not {_named(given)}"
        ) from None
    if not view.contiguous:
        raise LoomError(f"{symbol}: pack() returned a buffer with gaps in it; return a contiguous one, or bytes of it")
    return view.cast("B").toreadonly() if view.nbytes else b""


def _named(given: object) -> str:
    return "None" if given is None else f"an object of type {type(given).__name__}"


def _count(symbol: str, method: str, ask: Callable[[], object]) -> int:
    given: Any = _ask(symbol, method, ask)
    try:
        number = operator.index(given)
    except TypeError:
        raise LoomError(f"{symbol}: {method}() has to return an int, not {_named(given)}") from None
    if not 0 <= number <= MAX_TOLD_SIZE:
        raise LoomError(f"{symbol}: {method}() returned {_shown(number)}, no number from 0 to {MAX_TOLD_SIZE}")
    return number


def _shown(number: int) -> str:
    """Python refuses to write out numbers of thousands of digits."""
    return str(number) if number.bit_length() < 200 else f"a number of {number.bit_length()} bits"


def _ask(symbol: str, method: str, ask: Callable[..., _T], *args: object) -> _T:
    """Call a method of the type; whatever it raises becomes a LoomError with the traceback."""
    try:
        return ask(*args)
    except Exception as error:
        import traceback  # only here: it loads much

        below = error.__traceback__.tb_next if error.__traceback__ else None
        story = "".join(traceback.format_exception(type(error), error, below))
        raise LoomError(f"{symbol}: {method}() failed\n{story}") from None
