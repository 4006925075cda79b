"""What a Python task sees of its inputs, the context it may ask for, and what it may return."""

from collections.abc import Callable, Iterator
from typing import Any, Final, overload

from loom.data.array import Array
from loom.data.base import DataObject, DObject
from loom.data.index import Index
from loom.data.own import OwnObject, pack_own
from loom.data.plain import Plain
from loom.data.pyobj import PyObj
from loom.errors import LoomError
from loom.tasktypes.base import TaskError
from loom.tasktypes.task import Source, Task

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

    def view(self) -> memoryview:
        """The content, read-only and not copied where it is one stretch; TypeError where the object is no D-object."""
        if not isinstance(self.data_object, DObject):
            raise TypeError(f"only D-objects have plain bytes, this is {self.data_object.symbol}")
        return self.data_object.view().toreadonly()

    @property
    def symbol(self) -> str:
        """The symbol of the object's type, such as loom/data."""
        return self.data_object.symbol

    @property
    def is_d_object(self) -> bool:
        """Whether the content is plain bytes, for `read` and `view`."""
        return self.data_object.is_d_object

    def size(self) -> int:
        return self.data_object.size()

    def length(self) -> int:
        return self.data_object.length()

    def unwrap(self) -> Any:
        """A copy of the Python object inside, or the own data object; TypeError where there is neither.

        LoomError where the type of an own data object is not known here, or fails.
        """
        if not isinstance(self.data_object, (PyObj, OwnObject)):
            raise TypeError(f"only Python objects can be unwrapped, this is {self.data_object.symbol}")
        return self.data_object.load()

    def __repr__(self) -> str:
        return f"<{self.data_object.symbol} of {self.size()} bytes>"


class SequenceWrapper(Wrapper):
    """A wrapped array or index, or own data with elements: a sequence of wrapped elements."""

    __slots__ = ()
    data_object: Array | Index | OwnObject

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
        return wrap(element_of(self.data_object, place), whole=self, element=place)


def wrap(
    data_object: DataObject, position: int | None = None, whole: Wrapper | None = None, element: int = 0
) -> Wrapper:
    """The wrapper that suits the object."""
    is_sequence = isinstance(data_object, (Array, Index)) or (
        type(data_object) is OwnObject and data_object.has_elements()
    )
    kind = SequenceWrapper if is_sequence else Wrapper
    return kind(data_object, position, whole, element)


def element_of(value: Array | Index | OwnObject, i: int) -> DataObject:
    """Element `i`, which is there; TaskError where the code of an own type fails."""
    if not isinstance(value, OwnObject):
        return value.get(i)
    try:
        given = value.get(i)
    except LoomError as error:
        raise TaskError(str(error)) from None
    return data_object_of(given, f"{value.symbol}: get()")


def slice_of(value: Array | Index | OwnObject, start: int, end: int) -> DataObject:
    """Elements `start` to `end`, cut as Python's slices are; TaskError where the code of an own type fails."""
    if not isinstance(value, OwnObject):
        return value.slice(start, end)
    start, end, _ = slice(start, end).indices(value.length())
    try:
        given = value.slice(start, max(start, end))
    except LoomError as error:
        raise TaskError(str(error)) from None
    return data_object_of(given, f"{value.symbol}: slice()")


def data_object_of(result: object, who: str = "The function") -> DataObject:
    """What the user's code returned, as an object: bytes, str, a wrapper, own data, or a list of such.

    TaskError that says what `who` returned instead, or how the code of an own type failed.
    """
    try:
        own = pack_own(result)
    except LoomError as error:
        raise TaskError(str(error)) from None
    if own is not None:
        return own
    match result:
        case bytes():
            return Plain(bytes(result))
        case str():
            try:
                return Plain(result.encode())
            except UnicodeEncodeError as error:
                raise TaskError(f"{who} returned a str that is no valid text: {error}") from None
        case Wrapper():
            return result.data_object
        case list() | tuple():
            return Array([data_object_of(item, who) for item in result])
        case Task():
            raise TaskError(f"{who} returned a list with a task in it: a task can only be returned by itself")
    raise TaskError(
        f"{who} returned {type(result).__name__}, not bytes, str, an input, own data, a list of these or a task; "
        "return ctx.wrap(...) to make a Python object the result (py_task(context=True))"
    )


class Context:
    """First argument of a Python task made with `context=True`.

    `attempt` is 1 when the task is run for the first time and higher whenever it is run again.
    """

    __slots__ = ("_log", "attempt", "task_id")

    def __init__(self, task_id: int, log: Callable[[int, str], None], attempt: int = 1) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self._log = log

    def wrap(self, obj: object) -> Wrapper:
        """Make a Python object a data object, to be returned as it is; a wrapper stays what it is, own data too.

        LoomError where it cannot be pickled or packed.
        """
        if isinstance(obj, Wrapper):
            return obj
        own = pack_own(obj)
        if own is not None:
            return wrap(own)
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
