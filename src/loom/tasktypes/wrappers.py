"""What a Python task sees of its inputs, and the context it may ask for."""

from collections.abc import Callable, Iterator
from typing import Any, Final, overload

from loom.data.array import Array
from loom.data.base import DataObject, DObject
from loom.data.index import Index
from loom.data.pyobj import PyObj
from loom.errors import LoomError
from loom.tasktypes.task import Source

# Levels of the logging module, which an executor has no other need to import
_DEBUG: Final = 10
_INFO: Final = 20
_WARNING: Final = 30
_ERROR: Final = 40
_CRITICAL: Final = 50


class Wrapper(Source):
    """An immutable data object in the hands of a Python task; it may be returned, or be an input of a returned task."""

    __slots__ = ("data_object", "element", "position", "whole")

    def __init__(
        self,
        data_object: DataObject,
        position: int | None = None,
        whole: "Wrapper | None" = None,
        element: int = 0,
    ) -> None:
        self.data_object = data_object
        self.position = position  # among the task's inputs
        self.whole = whole  # what this is element `element` of
        self.element = element

    def read(self) -> bytes:
        """The content; empty where the object is no D-object."""
        return self.data_object.read() if isinstance(self.data_object, DObject) else b""

    def size(self) -> int:
        return self.data_object.size()

    def length(self) -> int:
        return self.data_object.length()

    def unwrap(self) -> Any:
        """A copy of the Python object inside; TypeError where there is none."""
        if not isinstance(self.data_object, PyObj):
            raise TypeError(f"only Python objects can be unwrapped, this is {self.data_object.symbol}")
        return self.data_object.load()

    def __repr__(self) -> str:
        return f"<{self.data_object.symbol} of {self.size()} bytes>"


class SequenceWrapper(Wrapper):
    """A wrapped array or index: a sequence of wrapped elements."""

    __slots__ = ()
    data_object: Array | Index

    def __len__(self) -> int:
        return self.data_object.length()

    @overload
    def __getitem__(self, index: int) -> Wrapper: ...

    @overload
    def __getitem__(self, index: slice) -> list[Wrapper]: ...

    def __getitem__(self, index: int | slice) -> Wrapper | list[Wrapper]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self._element(place) for place in places]
        return self._element(places)

    def __iter__(self) -> Iterator[Wrapper]:
        return map(self._element, range(len(self)))

    def _element(self, place: int) -> Wrapper:
        return wrap(self.data_object.get(place), whole=self, element=place)


def wrap(
    data_object: DataObject, position: int | None = None, whole: Wrapper | None = None, element: int = 0
) -> Wrapper:
    """The wrapper that suits the object."""
    kind = SequenceWrapper if isinstance(data_object, (Array, Index)) else Wrapper
    return kind(data_object, position, whole, element)


class Context:
    """First argument of a Python task made with `context=True`."""

    __slots__ = ("_log", "task_id")

    def __init__(self, task_id: int, log: Callable[[int, str], None]) -> None:
        self.task_id = task_id
        self._log = log

    def wrap(self, obj: object) -> Wrapper:
        """Make a Python object a data object, to be returned as it is; a wrapper stays what it is.

        LoomError where it cannot be pickled.
        """
        if isinstance(obj, Wrapper):
            return obj
        try:
            return Wrapper(PyObj.of(obj))
        except Exception as error:
            raise LoomError(f"an object of type {type(obj).__name__} cannot be pickled: {error}") from error

    def log_debug(self, message: object) -> None:
        self._log(_DEBUG, str(message))

    def log_info(self, message: object) -> None:
        self._log(_INFO, str(message))

    def log_warn(self, message: object) -> None:
        self._log(_WARNING, str(message))

    def log_error(self, message: object) -> None:
        self._log(_ERROR, str(message))

    def log_critical(self, message: object) -> None:
        self._log(_CRITICAL, str(message))
